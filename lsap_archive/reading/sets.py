"""Numbers of whole sets of images, such as a Fréchet distance: each over exactly the images that readers see.

Such a number is no mean, so those of parts cannot be averaged. What can be added up are the sums that it is made from,
which lie beside the measurements, shard by shard. Where one evaluation holds all sums of what readers see of a method,
its manifest has the number; else a document below `sets/`, which is named by the sums that were added. If neither is
there, as after a shard was retired, the number is not known until the method is evaluated again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from lsap_archive.errors import HOW_TO_REPAIR, ArchiveNotFoundError, CorruptArchiveError
from lsap_archive.format.columns import column
from lsap_archive.format.documents import Count, decode_document, encode_document, sha256_of, typed
from lsap_archive.format.evaluations import EvaluationInfo
from lsap_archive.format.layout import evaluation_prefix, rows_of_shard, set_key, state_name
from lsap_archive.format.manifest import Manifest
from lsap_archive.format.rows import OK
from lsap_archive.reading.checked import read_checked
from lsap_archive.stores.store import Store

FID = "fid"
STALE, NOT_MEASURED, TOO_FEW_IMAGES = "stale", "not_measured", "too_few_images"
COUNTED_TWICE = "counted_twice"
"""Why there is no number: nobody has added up these sums; a run was not measured; fewer than two images were; of a
shard's images some count in another run, and its sums cannot be split."""

SET_SCHEMA = pa.schema(
    [
        column("method", pa.string(), "the measured method or edit", is_needed=True),
        column("edit", pa.string(), "of an edit, its name"),
        column("strength", pa.float64(), "of an edit, how far it goes, in its own measure"),
        column("method_digest", pa.string(), "digest of everything that decides the results", is_needed=True),
        column("measure", pa.string(), "what was measured", values=FID, is_needed=True),
        column("by", pa.string(), "the network of whose features the sums are", is_needed=True),
        column("by_digest", pa.string(), "digest of its weights", is_needed=True),
        column("value", pa.float64(), "the number of the whole set", values="from 0"),
        column(
            "problem",
            pa.string(),
            "where there is no value, why",
            values=", ".join((STALE, NOT_MEASURED, COUNTED_TWICE, TOO_FEW_IMAGES)),
        ),
        column("num_images", pa.int64(), "images of the set", values="from 0"),
        column("num_originals", pa.int64(), "originals that it is compared with", values="from 0"),
        column("evaluations", pa.list_(pa.string()), "whose sums make up the set, the oldest first", is_needed=True),
    ]
)
"""One row for each method and network, over all images that readers see."""


@dataclass(frozen=True)
class ImageSet:
    """All images by a method that readers see, as one network has looked at them.

    Attributes:
        method, edit, strength, method_digest: of the runs; edit and strength are None for an inversion.
        network, network_digest: whose features the sums are of.
        parts: shards whose sums make up the set, by evaluation, the oldest first.
        newest: the newest evaluation of it.
        unmeasured: runs with images that readers see and that this network has not looked at.
        mixed: runs with a shard of which readers see some images, and others in another run.
        summary: the number, as `FrechetState.summary` of the package `tasks` gives it; None if it is not known.
        source: key of the object that has the number, and where in it; "" if there is none.
    """

    method: str
    edit: str | None
    strength: float | None
    method_digest: str
    network: str
    network_digest: str
    parts: Mapping[str, tuple[int, ...]]
    newest: str
    unmeasured: tuple[str, ...]
    mixed: tuple[str, ...] = ()
    summary: Mapping[str, Any] | None = None
    source: str = ""

    @property
    def key(self) -> str:
        """Where its number is kept that no manifest has; another set of shards has another key."""
        return _key_of(self.network, self.network_digest, self.parts)

    @property
    def problem(self) -> str | None:
        """Why there is no number; None if there is one."""
        if self.unmeasured:
            return NOT_MEASURED
        if self.mixed:
            return COUNTED_TWICE
        if self.summary is None:
            return STALE
        return TOO_FEW_IMAGES if self.summary.get("value") is None else None

    @property
    def is_stale(self) -> bool:
        """Whether all that is needed is there, and nobody has added it up."""
        return self.problem == STALE

    def to_row(self) -> dict[str, Any]:
        """In SET_SCHEMA; numbers only where they are of the whole set."""
        is_known = self.summary is not None and self.problem in (None, TOO_FEW_IMAGES)
        told = self.summary if is_known and self.summary is not None else {}
        return {
            **{name: getattr(self, name) for name in ("method", "edit", "strength", "method_digest", "problem")},
            "measure": FID,
            "by": self.network,
            "by_digest": self.network_digest,
            **{name: told.get(name) for name in ("value", "num_images", "num_originals")},
            "evaluations": list(self.parts),
        }

    def encode(self, summary: Mapping[str, Any]) -> bytes:
        """The document that keeps its number."""
        names = ("method", "method_digest", "network", "network_digest", "parts")
        told = {"measure": FID, **{name: getattr(self, name) for name in names}}
        return encode_document({**told, "summary": dict(summary)}, self.key)


def image_sets(
    store: Store,
    manifests: Sequence[Manifest],
    evaluations: Sequence[EvaluationInfo],
    hidden: Mapping[str, Collection[int]],
    twice: Mapping[str, Collection[int]],
) -> list[ImageSet]:
    """Every set of images of which a set-level number was asked for, with the number where it is known.

    Of several evaluations of a run by one network the newest counts, as with measurements.

    Args:
        store: the archive.
        manifests: of the runs that readers see, the oldest first.
        evaluations: that readers see, the oldest first.
        hidden: retired shards by run.
        twice: rows by run that count in another one.

    Raises:
        CorruptArchiveError: a document below `sets/` is damaged.
    """
    runs = {one.run_id: one for one in manifests}
    asked: dict[tuple[str, str, str, str], dict[str, EvaluationInfo]] = {}
    for info in evaluations:
        run, sums_of = runs.get(info.run_id or ""), info.sums_of
        if run is not None and sums_of is not None:
            asked.setdefault((run.method, run.method_digest, *sums_of), {})[run.run_id] = info
    found = [(_set_of(name, by_run, manifests, hidden, twice), by_run) for name, by_run in asked.items()]
    return [_with_number(store, one, by_run) for one, by_run in found if one.parts or one.unmeasured]


def _set_of(
    name: tuple[str, str, str, str],
    by_run: Mapping[str, EvaluationInfo],
    manifests: Sequence[Manifest],
    hidden: Mapping[str, Collection[int]],
    twice: Mapping[str, Collection[int]],
) -> ImageSet:
    method, method_digest, network, network_digest = name
    newest = max(by_run.values(), key=lambda one: one.order)
    parts: dict[str, tuple[int, ...]] = {}
    unmeasured, mixed = [], []
    for run in (one for one in manifests if (one.method, one.method_digest) == (method, method_digest)):
        if not set(run.own_shards) - set(hidden[run.run_id]):
            continue
        if run.run_id not in by_run:
            unmeasured += [run.run_id] if run.rows_by_status[OK] else []
            continue
        info = by_run[run.run_id]
        shown = [shard for shard in info.summed_shards if shard not in hidden[run.run_id]]
        elsewhere = set(twice.get(run.run_id, ()))
        own = {shard: set(rows_of_shard(shard, run.shard_rows, run.num_rows)) for shard in shown}
        if shards := tuple(shard for shard in shown if not own[shard] <= elsewhere):
            parts[info.evaluation_id] = shards
            mixed += [run.run_id] if any(own[shard] & elsewhere for shard in shards) else []
    return ImageSet(
        method,
        newest.edit,
        newest.strength,
        method_digest,
        network,
        network_digest,
        parts,
        newest.evaluation_id,
        tuple(unmeasured),
        tuple(mixed),
    )


def _with_number(store: Store, found: ImageSet, by_run: Mapping[str, EvaluationInfo]) -> ImageSet:
    """The set with its number: that of the manifest whose sums are all of it, else what was kept of just these."""
    for info in by_run.values():
        if dict(found.parts) == {info.evaluation_id: info.summed_shards} and isinstance(info.summary.get(FID), dict):
            source = f"{evaluation_prefix(info.evaluation_id)}/_manifest.json: summary.{FID}"
            return replace(found, summary=info.summary[FID], source=source)
    try:
        data = store.get(found.key)
    except ArchiveNotFoundError:
        return found
    return replace(found, summary=set_summary(data, found.key, store.join(found.key)), source=f"{found.key}: summary")


@dataclass(frozen=True)
class _KeptNumber:
    """What there has to be in the document of `ImageSet.encode`."""

    network: str
    network_digest: str
    parts: dict[str, tuple[Count, ...]]
    summary: dict[str, Any]


def set_summary(data: bytes, key: str, where: str) -> dict[str, Any]:
    """The number that `ImageSet.encode` wrote.

    Args:
        data: the bytes.
        key: where they were.
        where: its URL, for the message.

    Raises:
        CorruptArchiveError: it is damaged, or the number of another set.
    """
    kept: _KeptNumber = typed(_KeptNumber, decode_document(data, where), where)
    if _key_of(kept.network, kept.network_digest, kept.parts) != key:
        raise CorruptArchiveError(f"{where} holds the number of another set of images: {HOW_TO_REPAIR}")
    return kept.summary


def _key_of(network: str, network_digest: str, parts: Mapping[str, Sequence[int]]) -> str:
    told = [network, network_digest, {name: list(shards) for name, shards in parts.items()}]
    return set_key(sha256_of(json.dumps(told, sort_keys=True).encode())[:32])


def with_set_numbers(evaluations: Sequence[EvaluationInfo], sets: Sequence[ImageSet]) -> list[EvaluationInfo]:
    """The evaluations, of which the newest of each set has its number in `summary`, and the others none.

    What an evaluation of a part has in its manifest would be taken for a number of the whole.
    """
    shown = {one.newest: one.summary for one in sets if one.problem in (None, TOO_FEW_IMAGES)}
    return [
        info if info.sums_of is None else _with_summary(info, shown.get(info.evaluation_id)) for info in evaluations
    ]


def _with_summary(info: EvaluationInfo, shown: Mapping[str, Any] | None) -> EvaluationInfo:
    others = {name: value for name, value in info.summary.items() if name != FID}
    return replace(info, summary={**others, FID: dict(shown)} if shown is not None else others)


def read_states(store: Store, one: ImageSet, evaluations: Sequence[EvaluationInfo]) -> Iterator[bytes]:
    """The sums that make up a set, one shard at a time; bytes of .npz files.

    Raises:
        CorruptArchiveError: one is missing or altered.
    """
    files = {info.evaluation_id: {file.name: file for file in info.files} for info in evaluations}
    for evaluation_id, shards in one.parts.items():
        for name in map(state_name, shards):
            yield read_checked(store, f"{evaluation_prefix(evaluation_id)}/{name}", files[evaluation_id][name])
