"""The folder of a training run, on any storage: what it is, how far it has come, what it has measured.

    run.json                         what the run is; written once, so that no other run takes the folder for its own
    listings/train.parquet, ...      the images, by id
    anchors/<digest>.npz             the anchor of SNCD, where an encoder is trained
    inversions/w_plus/<sha256>.png   inversions in each latent space, by their images' digests, for SAM's predictor
    checkpoints/step-00004000.pt     the complete state; weights only, no code
    checkpoints/latest.json          which state is the newest complete one: the atomic switch
    metrics/part-<first>-<last>.parquet      rows of the steps in between; validation/ and problems/ likewise
    tensorboard/                     the same rows as event files
    sheets/step-00004000.png         originals over reconstructions
    progress.json                    where the run is right now
    best.safetensors  encoder.safetensors    what is trained, with the lowest validation loss and at last; the last
                                             networks of a refiner bear its name, such as hfgi.safetensors

A commit writes state and rows first and switches last. What a killed process has written beyond the switch is written
again, under the same names, so rows are neither lost nor doubled.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lsap_archive import ArchiveNotFoundError, Store, decode_document, encode_document, sha256_of, typed, utc_now
from lsap_core.alignment.anchor import Anchor
from lsap_core.errors import CheckpointError
from lsap_core.generators.checkpoints import read_torch
from lsap_core.refinement.sam_spaces import file_part
from tasks.array_files import read_npz
from tasks.errors import TaskError
from tasks.training.events import event_file

RUN_KEY = "run.json"
LATEST_KEY = "checkpoints/latest.json"
PROGRESS_KEY = "progress.json"
BEST_KEY = "best.safetensors"
LAST_KEY = "encoder.safetensors"
"""Of an encoder; the networks of a refiner bear its name."""
TABLES = ("metrics", "validation", "problems")

_PART = re.compile(r"part-(\d+)-(\d+)")
_STEP = re.compile(r"step-(\d+)\.")

Row = Mapping[str, Any]


class OtherRunError(TaskError, ValueError):
    """A folder holds another training run than the one that was asked for."""


@dataclass(frozen=True)
class Saved:
    """The newest complete state of a run.

    Attributes:
        step: steps taken.
        key: where the state is.
        num_bytes: its size.
        sha256: of its bytes.
        summary: a few numbers about the run up to here, for reports.
    """

    step: int
    key: str
    num_bytes: int
    sha256: str
    summary: dict[str, Any]


class TrainingStore:
    """One run's folder."""

    def __init__(self, url: str):
        self.store = Store.from_url(url)

    @property
    def url(self) -> str:
        """The folder, without credentials."""
        return self.store.url

    # --- what the run is ---

    def check(self, identity: Mapping[str, Any]) -> bool:
        """Whether the folder holds this run already.

        Raises:
            OtherRunError: it holds another one; the message names the fields that differ.
        """
        try:
            kept = self.identity()
        except ArchiveNotFoundError:
            return False
        wanted = json.loads(json.dumps(identity))
        if kept != wanted:
            names = sorted(name for name in {*kept, *wanted} if kept.get(name) != wanted.get(name))
            told = "; ".join(
                f"{name} is {_short(kept.get(name))} there, {_short(wanted.get(name))} here" for name in names
            )
            raise OtherRunError(
                f"{self.url} holds another training run ({told}): name another output, or ask for what it holds"
            )
        return True

    def claim(self, identity: Mapping[str, Any], configuration: Mapping[str, Any]) -> None:
        """Make the folder this run's own.

        Raises:
            OtherRunError: as `check`.
        """
        document = {"identity": dict(identity), "configuration": dict(configuration), "created_at": utc_now()}
        if not self.check(identity) and not self.store.create(RUN_KEY, encode_document(document, "the run")):
            self.check(identity)  # another process was first

    def identity(self) -> dict[str, Any]:
        """What the run is, as it was claimed.

        Raises:
            ArchiveNotFoundError: nobody claimed the folder.
        """
        where = self.store.join(RUN_KEY)
        identity: dict[str, Any] = typed(
            dict[str, Any], decode_document(self.store.get(RUN_KEY), where).get("identity"), where
        )
        return identity

    def put_listing(self, name: str, listing: pa.Table) -> None:
        """Keep the images of "train" or "validation"."""
        self.store.put(f"listings/{name}.parquet", _parquet(listing))

    def listing(self, name: str) -> pa.Table:
        """The images of "train" or "validation"."""
        return _table(self.store.get(f"listings/{name}.parquet"))

    def put_anchor(self, digest: str, anchor: Anchor) -> None:
        """Keep an anchor."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = anchor.to_arrays()
        np.savez(buffer, **arrays)
        self.store.put(f"anchors/{digest}.npz", buffer.getvalue())

    def anchor(self, digest: str) -> Anchor | None:
        """A kept anchor, or None."""
        try:
            data = self.store.get(f"anchors/{digest}.npz")
        except ArchiveNotFoundError:
            return None
        return Anchor.from_arrays(read_npz(data))

    def put_inversion(self, space: str, digest: str, png: bytes) -> None:
        """Keep the inversion of an image in a latent space."""
        self.store.put(_inversion_key(space, digest), png)

    def inversion(self, space: str, digest: str) -> bytes | None:
        """A kept inversion, or None."""
        try:
            return self.store.get(_inversion_key(space, digest))
        except ArchiveNotFoundError:
            return None

    def inverted(self, space: str) -> set[str]:
        """Digests of the images whose inversion in a latent space is kept."""
        keys = self.store.keys(_inversion_key(space, "").rpartition("/")[0])
        return {key.rpartition("/")[2].removesuffix(".png") for key in keys}

    # --- how far it has come ---

    def latest(self) -> Saved | None:
        """The newest complete state, or None before the first."""
        try:
            document = decode_document(self.store.get(LATEST_KEY), self.store.join(LATEST_KEY))
        except ArchiveNotFoundError:
            return None
        saved: Saved = typed(Saved, document, self.store.join(LATEST_KEY))
        return saved

    def load(self, saved: Saved) -> dict[str, Any]:
        """A complete state; nothing in it is run.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        where = self.store.join(saved.key)
        remedy = f"restore it from a copy, or delete {self.store.join(LATEST_KEY)} to train anew"
        try:
            data = self.store.get(saved.key)
        except ArchiveNotFoundError:
            raise CheckpointError(f"{where} does not exist, {LATEST_KEY} names it: {remedy}") from None
        if sha256_of(data) != saved.sha256:
            raise CheckpointError(
                f"{where} has {len(data)} bytes and another digest than was written ({saved.num_bytes} bytes): {remedy}"
            )
        try:
            state: dict[str, Any] = read_torch(data)
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}; {remedy}") from error
        return state

    def commit(
        self,
        step: int,
        state: Mapping[str, Any],
        rows: Mapping[str, Sequence[Row]],
        *,
        first: int,
        summary: Mapping[str, Any],
        keep: int,
    ) -> None:
        """Write the state after `step` and the rows of steps `first` ... `step`, then make them the newest.

        Args:
            step: steps taken.
            state: of tensors, numbers and text.
            rows: by name of the table.
            first: the first step since the last commit.
            summary: a few numbers about the run up to here.
            keep: how many states are kept.
        """
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        data = buffer.getvalue()
        key = f"checkpoints/step-{step:08d}.pt"
        self.store.put(key, data)
        for name in TABLES:
            if rows.get(name):
                self.store.put(f"{name}/part-{first:08d}-{step:08d}.parquet", _parquet(_rows_table(rows[name])))
        if rows.get("metrics") or rows.get("validation"):
            name = f"tensorboard/events.out.tfevents.part-{first:08d}-{step:08d}"
            self.store.put(name, event_file(rows.get("metrics", ()), rows.get("validation", ())))
        found = self.latest()
        if found is not None and found.step > step:
            return  # a process that was given up is behind the one that took its place
        document = Saved(step, key, len(data), sha256_of(data), dict(summary))
        self.store.put(LATEST_KEY, encode_document(vars(document), "the newest checkpoint"))
        self._drop_old(step, keep)

    def forget_after(self, step: int) -> None:
        """Remove what a killed process has written beyond the state that is gone on with."""
        for folder in (*TABLES, "tensorboard"):
            for key in self.store.keys(folder):
                found = _PART.search(key)
                if found and int(found[1]) > step:
                    self.store.delete(key)
        for key in self.store.keys("sheets"):
            found = _STEP.search(key)
            if found and int(found[1]) > step:
                self.store.delete(key)

    def _drop_old(self, step: int, keep: int) -> None:
        steps = {int(found[1]): key for key in self.store.keys("checkpoints") if (found := _STEP.search(key))}
        for old in sorted(number for number in steps if number <= step)[:-keep]:
            self.store.delete(steps[old])

    def table(self, name: str) -> pa.Table | None:
        """All rows of a table, in the order of the steps; None when there are none."""
        latest = self.latest()
        parts = (
            [_table(self.store.get(key)) for key in self.store.keys(name) if _ends_at(key) <= latest.step]
            if latest
            else []
        )
        return pa.concat_tables(parts, promote_options="default") if parts else None

    def put_progress(self, values: Mapping[str, Any]) -> None:
        """Tell where the run is; for people who watch, nothing depends on it."""
        self.store.put(PROGRESS_KEY, json.dumps(dict(values)).encode())

    def progress(self) -> dict[str, Any] | None:
        """Where the run is, or None."""
        try:
            values = json.loads(self.store.get(PROGRESS_KEY))
        except (ArchiveNotFoundError, ValueError, RecursionError):
            return None
        return values if isinstance(values, dict) else None

    def put_failure(self, launch: str, kind: str, message: str) -> None:
        """Tell the other workers of a launch that trying again cannot help."""
        self.store.put(f"failures/{launch}.json", json.dumps({"kind": kind, "message": message}).encode())

    def failure(self, launch: str) -> dict[str, str] | None:
        """Why a launch failed for good, or None."""
        try:
            told: dict[str, str] = json.loads(self.store.get(f"failures/{launch}.json"))
        except ArchiveNotFoundError:
            return None
        return told

    def forget_failure(self, launch: str) -> None:
        """Remove what `put_failure` wrote, once it was told."""
        self.store.delete(f"failures/{launch}.json")

    def put_networks(self, key: str, data: bytes) -> None:
        """Keep what is trained, as it is now, under `BEST_KEY` or the last key of its spec."""
        self.store.put(key, data)

    def has_networks(self, key: str) -> bool:
        """Whether there is something under `BEST_KEY` or the last key."""
        return self.store.exists(key)

    def newest_sheet(self) -> str | None:
        """URL of the newest sheet of samples, or None when there is none."""
        keys = sorted(self.store.keys("sheets"))
        return self.store.join(keys[-1]) if keys else None

    def put_sheet(self, step: int, png: bytes) -> None:
        """Keep a sheet of samples."""
        self.store.put(f"sheets/step-{step:08d}.png", png)


def _rows_table(rows: Sequence[Row]) -> pa.Table:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _table(data: bytes) -> pa.Table:
    return pq.read_table(pa.BufferReader(data), use_threads=False, pre_buffer=False)  # small: threads would only cost


def _inversion_key(space: str, digest: str) -> str:
    return f"inversions/{file_part(space)}/{digest}.png"


def _ends_at(key: str) -> int:
    found = _PART.search(key)
    assert found is not None, key
    return int(found[2])


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
