"""Embed one shard: read its images, find their codes, measure, write codes and rows to the archive."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import socket
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from lsap_archive import (
    BETWEEN_WORDS,
    DUPLICATE,
    FAILED,
    OK,
    ROW_SCHEMA,
    UNSETTLED,
    Archive,
    RunWriter,
    noise_name,
    open_archive,
)
from lsap_core.encoders.encoder import Encoder
from lsap_core.errors import CheckpointError
from lsap_core.images import from_uint8, to_uint8
from lsap_core.inversion.inversion import Embedder, EmbedderState, Inversion, Parts
from lsap_core.inversion.kept_noise import as_kept
from lsap_core.presets import encoder_settings, settings_of
from tasks.archived.anchors import open_anchor
from tasks.archived.image_seeds import image_seed
from tasks.archived.jobs import outcome_of_committed
from tasks.archived.originals import fit_of
from tasks.archived.rendering import Preview, Renderer, Stored, has_noise_maps, kept_noise_of, noise_of
from tasks.archived.saved_states import SAVE_EVERY_SECONDS, SavedState
from tasks.errors import BadImageError
from tasks.inversion.listing import UNREADABLE
from tasks.inversion.request import InversionRequest
from tasks.measuring.of_inversions import measure
from tasks.pictures.decoding import DecodedImage, Fit, decode_image, place_content
from tasks.sources.items import SourceItem
from tasks.sources.source import digest_bytes, open_source
from tasks.stage import Shard, ShardOutcome
from tasks.weights.devices import module_device, place
from tasks.weights.encoders import load_encoder
from tasks.weights.networks import load_networks

LONGEST_PREVIEW_SIDE = 256
READ_TOGETHER = 8  # images, while the others wait for their storage
READING = 0.01  # of the work on an image
KEPT_RUNS = 4
_OF_PIXELS = ("width", "height", "altered")


class EmbedWorker:
    """Networks loaded once; called with one shard after the other, whichever run it belongs to."""

    def __init__(self, request: InversionRequest, *, save_every_seconds: float = SAVE_EVERY_SECONDS):
        self.request = request
        self.save_every_seconds = save_every_seconds
        self.device = module_device(request.device)
        loaded = request.generator.load()
        self.generator = place(loaded.generator, self.device).freeze()
        self.networks = load_networks(request.networks, self.device)
        self.anchor = open_anchor(request.archive, request.anchor.digest(loaded.digest)).to(self.device)
        self.source = open_source(request.source)
        self._readers = ThreadPoolExecutor(READ_TOGETHER, thread_name_prefix="read-shard")
        self._runs: dict[str, RunWriter] = {}  # the last ones: each has all its images
        self._encoders: dict[tuple[str, str], Encoder] = {}  # the one that the last shard needed: they are large
        self._progress = 0.0
        self._spent: defaultdict[str, float] = defaultdict(float)

    def progress(self) -> float:
        """Images' worth of work done on the present shard."""
        return self._progress

    def __call__(self, shard: Shard) -> ShardOutcome:
        """Embed a shard and commit it; one that is committed already is not embedded again."""
        started, began = time.monotonic(), time.time()
        self._progress = 0.0
        self._spent = defaultdict(float)
        run = self._run(shard.job_id)
        if run.is_committed(shard.index):  # by another command at the same time, or by this one, unheard
            return outcome_of_committed(run, shard, time.monotonic() - started)
        planned = run.planned_rows(shard.index).to_pylist()
        planned = [{**row, "uri": shard.places.get(row["image_id"], row["uri"])} for row in planned]
        with self._spending("reading"):
            rows = self._read_all(planned, shard.duplicates, fit_of(run.plan["config"]))
        arrays = self._empty_arrays(run, len(rows))
        good = [index for index, row in enumerate(rows) if row.image is not None]
        self._progress = float(len(rows) - len(good))
        resumed_at = 0
        for start in range(0, len(good), self.request.batch_size):
            batch = good[start : start + self.request.batch_size]
            resumed = self._embed_batch(run, shard.index, [rows[index] for index in batch], arrays, batch)
            resumed_at = resumed_at or resumed
        for row in rows:
            row.follow()
        table = pa.Table.from_pylist([row.columns for row in rows], schema=_columns_of(rows))
        with self._spending("writing"):
            won = run.write_shard(shard.index, arrays, table, attempt=f"{shard.command}-{uuid.uuid4().hex[:12]}")
        return ShardOutcome(
            shard.job_id,
            shard.index,
            won,
            dict(Counter(row.columns["status"] for row in rows)),
            dict(Counter(row.columns["reason"] for row in rows if row.columns["status"] == FAILED)),
            time.monotonic() - started,
            resumed_at,
            dict(self._spent),
            f"{socket.gethostname()}:{os.getpid()}",
            began,
        )

    def preview(self, images_of: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Preview]]:
        """Original, reconstruction and difference of published images, by method and id.

        Args:
            images_of: by name or digest of the method, image_id, uri and digest of each image, and run_id, whose `fit`
                its original is shown with (that of the request where it is not told); an original that this source
                does not have, or not any more with this content, is left out.
        """
        archive = open_archive(self.request.archive)
        previews = {}
        for method, images in images_of.items():
            previews[method] = self._preview(archive, method, images)
            self._progress += len(images)
        return previews

    def _preview(self, archive: Archive, method: str, images: Sequence[Mapping[str, Any]]) -> dict[str, Preview]:
        fits = {run.run_id: fit_of(run.config) for run in archive.runs}
        read = (self._read(image, fits.get(image.get("run_id", ""), self.request.fit)) for image in images)
        shown = [row for row in read if row.image is not None]
        if not shown:
            return {}
        ids = [row.columns["image_id"] for row in shown]
        reconstruction = Stored.of_images(Renderer(self.generator), archive, ids, method).render()
        target = from_uint8(np.stack([row.pixels for row in shown])).to(self.device)
        difference = (reconstruction.clamp(-1, 1) - target).abs() - 1  # black where they agree
        pictures = zip(ids, shown, to_uint8(reconstruction), to_uint8(difference), strict=True)
        return {image_id: Preview(_png(row.pixels), _png(made), _png(apart)) for image_id, row, made, apart in pictures}

    @contextlib.contextmanager
    def _spending(self, what: str) -> Iterator[None]:
        """Book the time of this block."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._spent[what] += time.monotonic() - started

    def _run(self, run_id: str) -> RunWriter:
        if run_id not in self._runs:
            if len(self._runs) == KEPT_RUNS:
                del self._runs[next(iter(self._runs))]
            self._runs[run_id] = RunWriter.open(self.request.archive, run_id)
        return self._runs[run_id]

    def _read_all(self, planned: Sequence[Mapping[str, Any]], duplicates: Mapping[str, str], fit: Fit) -> list[_Row]:
        """The rows of a shard, as far as reading decides them.

        Of several with the same content the first one that is there is read, and the others follow it: a copy of a bad
        image is bad itself. Where an earlier shard has that content too, it is read here all the same, because nobody
        knows yet what became of it there; if it is good, its code is left to that shard.
        """
        alike: defaultdict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
        for image in planned:
            digest = image["digest"]
            alike[digest, image["image_id"] if digest.startswith(UNREADABLE) else ""].append(image)
        rows: dict[str, _Row] = {}
        waiting = list(alike.values())
        while waiting:
            read = self._readers.map(self._read, [images[0] for images in waiting], itertools.repeat(fit))
            left = []
            for images, row in zip(waiting, read, strict=False):
                first, *others = images
                rows[first["image_id"]] = row
                self._progress = READING * len(rows)
                if row.columns["reason"] in UNSETTLED:  # of this content it says nothing
                    left += [others] if others else []
                    continue
                original = duplicates.get(first["image_id"])
                if row.image is not None and original is not None and original not in rows:
                    row.image = None
                    row.columns |= {"status": DUPLICATE, "duplicate_of": original}
                rows |= {other["image_id"]: _Row(_unread(other), copy_of=row) for other in others}
            waiting = left
        return [rows[image["image_id"]] for image in planned]

    def _read(self, planned: Mapping[str, Any], fit: Fit) -> _Row:
        columns = _unread(planned)
        item = SourceItem(planned["image_id"], planned["uri"])
        try:
            image = self._decode(self._read_as_planned(item, planned["digest"]), fit)
        except BadImageError as error:
            columns |= {"status": FAILED, "reason": error.reason, "message": str(error)}
            return _Row(columns)
        columns |= {"width": image.width, "height": image.height, "altered": BETWEEN_WORDS.join(image.notes)}
        return _Row(columns, image)

    def _read_as_planned(self, item: SourceItem, digest: str) -> bytes:
        """The bytes that the run was planned with. What fails otherwise is planned again by the next command."""
        try:
            data = self.source.read(item)
        except BadImageError as error:
            if digest.startswith(UNREADABLE) or error.reason in UNSETTLED:
                raise
            raise BadImageError("changed", f"{error} (it could be read when the run was planned)") from None
        if digest_bytes(data) != digest:
            raise BadImageError(
                "changed", "the image is not what it was when the run was planned: run the same command again"
            )
        return data

    def _decode(self, data: bytes, fit: Fit) -> DecodedImage:
        config = self.generator.config
        image = decode_image(data, size=config.content_size, channels=config.image_channels, fit=fit)
        pixels = place_content(image.pixels, resolution=config.resolution, content_box=config.content_box)
        return replace(image, pixels=pixels)

    def _empty_arrays(self, run: RunWriter, count: int) -> dict[str, np.ndarray]:
        left_out: set[str] = set()  # maps that runs of an encoder declared before version 4 and never kept
        if not has_noise_maps(run.plan["config"]):
            left_out = {noise_name(index) for index in range(len(self.generator.config.noise_sides))}
        kept = [array for array in run.arrays.values() if array.name not in left_out]
        return {array.name: np.full((count, *array.item_shape), array.fill_value, array.dtype) for array in kept}

    def _embed_batch(
        self,
        run: RunWriter,
        shard: int,
        rows: list[_Row],
        arrays: dict[str, np.ndarray],
        places: list[int],
    ) -> int:
        """Fill the arrays at `places` and the columns of `rows`; returns the step it was resumed at."""
        embedder = self._embedder(run)
        image_ids = [row.columns["image_id"] for row in rows]
        saved = SavedState(run, shard, image_ids, every_seconds=self.save_every_seconds)
        started = time.monotonic()
        target = from_uint8(np.stack([row.pixels for row in rows])).to(self.device)
        seeds = [image_seed(run.plan["config"]["seed"], image_id) for image_id in image_ids]
        done_before = self._progress
        inversion, resumed_at = self._find_codes(saved, embedder, target, seeds)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # else the time would be that of asking
        self._spent["embedding"] += time.monotonic() - started
        seconds = (time.monotonic() - started) / len(rows)
        self._fill(run, rows, arrays, places, inversion, target, seconds)
        self._progress = done_before + len(rows)
        return resumed_at

    def _find_codes(
        self, saved: SavedState, embedder: Embedder[Any], target: Tensor, seeds: list[int]
    ) -> tuple[Inversion, int]:
        """The inversion of a batch, and the step it was resumed at; its state is saved now and then."""
        num_steps = embedder.settings.num_steps
        state = embedder.start(seeds, target=target)
        resumed_at = saved.restore(state) if num_steps > 1 else 0  # of one step there is nothing to take up
        done_before = self._progress

        def after_step(state: EmbedderState) -> None:
            self._progress = done_before + len(seeds) * state.step / num_steps
            saved.save_if_due(state)

        embedder.advance(state, target, after_step=after_step)
        return embedder.finish(state), resumed_at

    def _embedder(self, run: RunWriter) -> Embedder[Any]:
        """The method of a run, on the networks of this worker."""
        settings = settings_of(run.plan["config"])
        parts = Parts(self.generator, self.anchor, self.networks.perceptual)
        if settings.needs_encoder:
            name, digest = (run.plan["config"]["encoder"][key] for key in ("name", "digest"))
            num_passes = encoder_settings(settings, name).num_passes
            parts = replace(parts, encoder=self._encoder(run.run_id, name, digest), num_passes=num_passes)
        return settings.embedder(parts)

    def _encoder(self, run_id: str, name: str, digest: str) -> Encoder:
        """The encoder that a run was planned with.

        Raises:
            CheckpointError: the file holds another one.
        """
        if (name, digest) not in self._encoders:
            loaded = load_encoder(self.request.encoders[name], generator_config=self.generator.config)
            if loaded.digest != digest:
                raise CheckpointError(
                    f"{self.request.encoders[name]} holds encoder {loaded.digest}, run {run_id} was planned with "
                    f"{digest}: run the same command again"
                )
            encoder = loaded.encoder.requires_grad_(False)
            self._encoders = {(name, digest): place(encoder, self.device)}
        return self._encoders[name, digest]

    def _fill(
        self,
        run: RunWriter,
        rows: list[_Row],
        arrays: dict[str, np.ndarray],
        places: list[int],
        inversion: Inversion,
        target: Tensor,
        seconds: float,
    ) -> None:
        config = run.plan["config"]
        settings = settings_of(config)
        if settings.keeps_noise:  # else it is the generator's already
            inversion = as_kept(inversion, self.generator, kept_noise_of(config))
        with self._spending("measuring"):
            metrics = measure(
                inversion.reconstruction,
                target,
                inversion.w_plus,
                generator=self.generator,
                anchor=self.anchor,
                networks=self.networks,
            )
        arrays["w_plus"][places] = inversion.w_plus.cpu().numpy()
        if has_noise_maps(config):
            for index, maps in enumerate(inversion.noise):
                arrays[noise_name(index)][places] = maps[:, 0].cpu().numpy()
        trace = inversion.trace.cpu().numpy()
        if "trace" in arrays:
            arrays["trace"][places] = trace
        for index, row in enumerate(rows):
            stopped_at = int(inversion.stopped_at[index])
            row.columns |= {"num_steps": inversion.num_steps, "seconds": seconds}
            if stopped_at >= 0:
                reason, message = settings.why_stopped(stopped_at)
                row.columns |= {"status": FAILED, "reason": reason, "message": message}
                continue
            row.columns |= {"noise": noise_of(config), **{name: values[index] for name, values in metrics.items()}}
            if inversion.trace_steps:
                row.columns["final_loss"] = float(trace[index, -1, inversion.trace_terms.index("loss")])


@dataclass
class _Row:
    """One image of a shard on its way to the archive."""

    columns: dict[str, Any]
    image: DecodedImage | None = None
    copy_of: _Row | None = None  # a row of this shard with the same content

    def follow(self) -> None:
        """Become what the row that this one is a copy of has become: failed as it, or its duplicate."""
        if self.copy_of is None:
            return
        original = self.copy_of.columns
        self.columns |= {name: original.get(name) for name in ("status", "reason", "message", *_OF_PIXELS)}
        if original["status"] != FAILED:
            self.columns |= {"status": DUPLICATE, "duplicate_of": original["duplicate_of"] or original["image_id"]}

    @property
    def pixels(self) -> np.ndarray:
        assert self.image is not None
        return self.image.pixels


def _unread(image: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of an image that nobody has looked at."""
    return {"image_id": image["image_id"], "status": OK, "reason": None, "message": None, "duplicate_of": None}


def _columns_of(rows: Sequence[_Row]) -> pa.Schema:
    names = {name for row in rows for name in row.columns}
    return pa.schema([column for column in ROW_SCHEMA if column.name in names])


def _png(pixels: np.ndarray) -> bytes:
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((LONGEST_PREVIEW_SIDE, LONGEST_PREVIEW_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
