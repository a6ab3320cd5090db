"""Retired shards, runs and evaluations: damaged beyond repair, there twice, or given up; no reader sees them any more.

Nothing published is rewritten, so what cannot be restored bit for bit is retired by a create-only key. Its presence
counts, whatever it holds. Whoever plans a run then finds that these images are missing, and makes them again, unless
another run has them.

A shard of a refinement or an edit is retired with the same shard of what it is made of, and so are measurements of it:
one key retires them all at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lsap_archive.errors import ArchiveMismatchError, ArchiveNotFoundError, CorruptArchiveError
from lsap_archive.format.documents import Count, decode_document, encode_document, typed
from lsap_archive.format.layout import RETIRED_FOLDER, prefix_of, retired_name, run_prefix
from lsap_archive.reading.checked import P, read_manifest
from lsap_archive.stores.concurrency import in_threads
from lsap_archive.stores.store import Store

_SHARD = re.compile(r"\d{5,}")


@dataclass(frozen=True)
class Retirement:
    """Why something is retired; kept under the key that retires it.

    Attributes:
        of: the run or evaluation.
        shard: number of the shard, None for all of it.
        problems: what was wrong, one sentence each.
        created: UTC time, ISO 8601.
    """

    of: str
    shard: Count | None
    problems: tuple[str, ...]
    created: str

    def encode(self) -> bytes:
        """The document as bytes."""
        return encode_document(vars(self), f"the retirement of {self.of}")

    @classmethod
    def decode(cls, data: bytes, name: str) -> Retirement:
        """The document that `encode` wrote.

        Raises:
            CorruptArchiveError: it is damaged. What it retires is retired all the same.
        """
        found: Retirement = typed(cls, decode_document(data, name), name)
        return found


class Made(Protocol):
    """What a run is made of: as its manifest tells it, or whatever else knows."""

    @property
    def run_id(self) -> str:
        """The run."""

    @property
    def lineage(self) -> tuple[str, ...]:
        """The run itself, and those that it is made of, the inversion last."""

    @property
    def num_shards(self) -> int:
        """Above the number of every shard."""


@dataclass(frozen=True)
class RetiredShards:
    """What of a run is retired by keys of its own.

    Attributes:
        whole: whether the run is.
        shards: numbers of the shards that are.
        has_twice: whether rows that older runs of its method have with the same content count there.
    """

    whole: bool
    shards: frozenset[int]
    has_twice: bool


def retired_of(store: Store, run_id: str) -> RetiredShards:
    """What of a run is retired by keys of its own."""
    keys = store.keys(f"{run_prefix(run_id)}/{RETIRED_FOLDER}")
    names = {key.rsplit("/", 1)[1].removesuffix(".json") for key in keys}
    shards = frozenset(int(name) for name in names if _SHARD.fullmatch(name))
    return RetiredShards("run" in names, shards, "twice" in names)


def is_retired(store: Store, kind: str, name: str) -> bool:
    """Whether all of a run or an evaluation is retired; kind is "run" or "evaluation"."""
    return store.exists(f"{prefix_of(kind, name)}/{retired_name(kind)}")


def visible_manifest(store: Store, manifest_type: type[P], name: str) -> P | None:
    """The manifest of a run or evaluation that readers see; None where it is not published, or retired.

    What retires is looked for last: a run may be given up while somebody else publishes it, and then is never seen.

    Raises:
        CorruptArchiveError, ArchiveMismatchError: as `read_manifest`, unless it is retired.
    """
    try:
        manifest = read_manifest(store, manifest_type, name)
    except ArchiveNotFoundError:
        return None
    except (ArchiveMismatchError, CorruptArchiveError):
        if is_retired(store, manifest_type.kind, name):
            return None
        raise
    return None if is_retired(store, manifest_type.kind, name) else manifest


def hidden_shards(store: Store, manifests: Sequence[Made]) -> dict[str, frozenset[int]]:
    """Shards that readers do not see, by run: retired ones, also of what the run is made of.

    Args:
        store: the archive.
        manifests: of published runs.
    """
    found = retired_by_run(store, manifests)
    return {one.run_id: hidden_of(one, found) for one in manifests}


def retired_by_run(store: Store, manifests: Sequence[Made]) -> dict[str, RetiredShards]:
    """What of each of these runs, and of those that they are made of, is retired by keys of its own."""
    run_ids = sorted({run_id for one in manifests for run_id in one.lineage})
    return dict(zip(run_ids, in_threads(lambda run_id: retired_of(store, run_id), run_ids), strict=True))


def may_be_twice(manifest: Made, found: Mapping[str, RetiredShards]) -> bool:
    """Whether rows of a run count in older runs that have them too; they do as those of the inversion do."""
    return found[manifest.lineage[-1]].has_twice


def hidden_of(manifest: Made, found: Mapping[str, RetiredShards]) -> frozenset[int]:
    """Shards of a run that readers do not see."""
    hidden: frozenset[int] = frozenset()
    for run_id in manifest.lineage:
        if found[run_id].whole:
            return frozenset(range(manifest.num_shards))
        hidden |= found[run_id].shards
    return hidden
