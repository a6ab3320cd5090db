"""The runs of an archive that a further run works on, and their codes and images shard by shard."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lsap_archive import Archive, ArchiveKeyError, RunInfo, typed
from lsap_core.presets import Method, recorded_settings
from tasks.archived.rendering import FULL_NOISE

IMPORTED = "imported"
"""What the configuration of a run whose codes are from elsewhere tells of them; it has no settings of a method."""


@dataclass(frozen=True)
class EncoderOfRun:
    """The encoder that a run's codes are by.

    Attributes:
        name: as the domain calls it.
        digest: of its weights.
    """

    name: str
    digest: str | None


@dataclass(frozen=True)
class RunConfig:
    """What of a run's configuration others go by; what has been written by others is read as this, not as it is.

    Attributes:
        settings: of its method, as `recorded_settings` gives them; None of an edit.
        anchor: digest of its anchor.
        encoder: what it was inverted by, or None.
        noise: what its images are rendered with.
    """

    settings: dict[str, Any] | None = None
    anchor: str | None = None
    encoder: EncoderOfRun | None = None
    noise: str = FULL_NOISE


def config_of(run: RunInfo) -> RunConfig:
    """What a run's configuration says.

    Raises:
        CorruptArchiveError: it makes no sense.
    """
    found: RunConfig = typed(RunConfig, run.config, f"the configuration of run {run.run_id}")
    return found


def runs_by_method(
    archive: Archive, names: Sequence[str], *, with_edits: bool, versions: Mapping[str, str] | None = None
) -> dict[str, tuple[RunInfo, ...]]:
    """The runs of each method, the oldest first: of several configurations with one name the newest counts.

    Args:
        archive: as it is published now.
        names: of methods; empty for all.
        with_edits: whether edits are methods too, such as "lsap_e/slant".
        versions: by name, digest of the configuration that counts instead of the newest.

    Raises:
        ArchiveKeyError: the archive has no such method or configuration, or none at all.
    """
    known = [*archive.methods, *(archive.edits if with_edits else ())]
    if not known:
        raise ArchiveKeyError(f"{archive.url} has no published inversion: run `lsap run invert` first")
    chosen = {}
    for name in names or known:
        if name not in known:
            raise ArchiveKeyError(f"{archive.url} has no method {name}: it has {', '.join(known)}")
        runs = [run for run in archive.runs if run.method == name]
        newest = max(runs, key=lambda run: run.order).method_digest
        wanted = (versions or {}).get(name, newest)
        chosen[name] = tuple(run for run in runs if run.method_digest == wanted)
        if not chosen[name]:
            digests = ", ".join(sorted({run.method_digest for run in runs}))
            raise ArchiveKeyError(f"{archive.url} has no version {wanted} of method {name}: it has {digests}")
    return chosen


def inversions_by_method(archive: Archive, names: Sequence[str]) -> dict[str, tuple[RunInfo, ...]]:
    """The runs of each inversion, as `runs_by_method` has them; what is refined already is none.

    Args:
        archive: as it is published now.
        names: of methods; empty for all.

    Raises:
        ArchiveKeyError: the archive has no such method or none at all, or one is refined.
    """
    inversions = sorted({run.method for run in archive.runs if run.subject is None})
    for name in names:
        if name in archive.methods and name not in inversions:
            raise ArchiveKeyError(f"{name} is refined already; wanted inversions: {', '.join(inversions)}")
    return runs_by_method(archive, names or inversions, with_edits=False)


def title_of(run: RunInfo) -> str:
    """What a method is called for people."""
    return str(run.config.get("title", run.method))


def id_part(method: str) -> str:
    """A method's name as a part of an id, such as "lsap_e.slant" for "lsap_e/slant"."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", method.replace("/", "."))


def current_runs(
    archive: Archive, methods: Sequence[Method], anchor: str, encoders: Mapping[str, str] | None = None
) -> list[RunInfo]:
    """The runs of these methods with these settings, encoders, this anchor and such noise, the oldest first."""
    digests = encoders or {}
    decisive = {
        method.name: (recorded_settings(method.settings), digests.get(method.encoder or ""), anchor, method.noise)
        for method in methods
    }
    found = []
    for run in archive.runs:
        if run.method in decisive:
            config = config_of(run)
            encoder = None if config.encoder is None else config.encoder.digest
            found += [run] if decisive[run.method] == (config.settings, encoder, config.anchor, config.noise) else []
    return found


def current_rows(
    archive: Archive, methods: Sequence[Method], anchor: str, encoders: Mapping[str, str] | None = None
) -> pa.Table:
    """All rows of `current_runs`, the oldest run first; of several rows for one image the last counts."""
    wanted = [run.run_id for run in current_runs(archive, methods, anchor, encoders)]
    rows = archive.rows(history=True)
    return rows.filter(pc.is_in(rows.column("run_id"), pa.array(wanted, pa.string())))
