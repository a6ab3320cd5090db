"""Is everything there, and is it what was written? Reads the whole archive once, one object at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from lsap_archive.documents import decode_document, sha256_of
from lsap_archive.errors import ArchiveError, ArchiveNotFoundError, StoreUnavailableError
from lsap_archive.evaluations import EvaluationInfo, EvaluationPlan
from lsap_archive.layout import (
    EVALUATIONS_PREFIX,
    IMAGES_FOLDER,
    IMAGES_NAME,
    RUNS_PREFIX,
    TRACE,
    Geometry,
    commit_prefix,
    evaluation_manifest_key,
    evaluation_plan_key,
    evaluation_prefix,
    manifest_key,
    measurements_name,
    plan_key,
    rows_name,
    run_prefix,
    staging_prefix,
)
from lsap_archive.manifest import Manifest, ShardCommit, StoredObject
from lsap_archive.measurements import MEASUREMENT_SCHEMA
from lsap_archive.plan import images_digest
from lsap_archive.published import read_header, read_manifest
from lsap_archive.schema import FAILED, IMAGES_SCHEMA, OK, ROW_SCHEMA, STATUSES, from_parquet
from lsap_archive.store import Store
from lsap_archive.zarr_shards import array_layouts, chunk_of, decode_shard


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        key: the object, relative to the archive.
        found: what is there.
        wanted: what should be.
    """

    key: str
    found: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.key}: found {self.found}, wanted {self.wanted}"


@dataclass
class VerifyReport:
    """What verify_archive found.

    Attributes:
        url: the archive.
        counts: number of published_runs, unfinished_runs, objects, bytes, rows, rows by status, evaluations, and
            measurements.
        problems: what is wrong; empty if the archive is sound.
        information: what is unusual and harmless: unfinished runs, orphaned staging, objects nobody names.
    """

    url: str
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    information: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "url": self.url,
            "is_sound": self.is_sound,
            "counts": dict(self.counts),
            "problems": [vars(problem) for problem in self.problems],
            "information": list(self.information),
        }

    def count(self, name: str, number: int = 1) -> None:
        """Add to a count."""
        self.counts[name] = self.counts.get(name, 0) + number


def verify_archive(url: str, storage_options: Mapping[str, Any] | None = None) -> VerifyReport:
    """Check every published object: size, digest, checksums, and that rows and arrays agree.

    Reads the archive once, holding one object and one shard's rows in memory. What is wrong is reported, not
    raised.

    Args:
        url: a local path, or file://, memory:// or s3://bucket/prefix.
        storage_options: for s3, what s3fs takes.

    Raises:
        ArchiveNotFoundError: no archive is there.
        StoreUnavailableError: the store does not answer or refuses.
    """
    store = Store.from_url(url, storage_options)
    names = ("published_runs", "unfinished_runs", "objects", "bytes", "rows", *STATUSES, "evaluations", "measurements")
    report = VerifyReport(store.url, dict.fromkeys(names, 0))
    try:
        _, geometry = read_header(store)
    except (ArchiveNotFoundError, StoreUnavailableError):
        raise
    except ArchiveError as error:
        report.problems.append(Problem("archive.json", str(error), "the archive's header"))
        return report
    images = []
    runs: dict[str, Manifest] = {}
    for run_id in store.folders(RUNS_PREFIX):
        images.append((run_id, _verify_run(store, run_id, geometry, runs, report)))
    _verify_unique(images, report)
    _verify_subjects(runs, report)
    for evaluation_id in store.folders(EVALUATIONS_PREFIX):
        _verify_evaluation(store, evaluation_id, runs, report)
    return report


def _verify_run(
    store: Store, run_id: str, geometry: Geometry, runs: dict[str, Manifest], report: VerifyReport
) -> list[tuple[str, ...]]:
    """Check one run and note its manifest; its rows as (created, method digest, image id, digest, status)."""
    try:
        manifest = read_manifest(store, run_id)
    except ArchiveNotFoundError:
        _verify_unfinished(store, run_id, report)
        return []
    except StoreUnavailableError:
        raise
    except ArchiveError as error:
        report.problems.append(Problem(manifest_key(run_id), str(error), "the run's manifest"))
        return []
    report.count("published_runs")
    runs[run_id] = manifest
    if Geometry.from_dict(manifest.geometry) != geometry:
        report.problems.append(Problem(manifest_key(run_id), str(manifest.geometry), str(geometry)))
    files = {file.name: file for file in manifest.files}
    for name in ("plan.json", IMAGES_NAME, "zarr.json", "w_plus/zarr.json"):
        if name not in files:
            report.problems.append(Problem(f"{run_prefix(run_id)}/{name}", "no entry in the manifest", "one"))
    metadata = {name: _checked(store, run_id, files[name], report) for name in files if name.endswith(".json")}
    if IMAGES_NAME in files:
        _verify_images(_checked(store, run_id, files[IMAGES_NAME], report), manifest, metadata, report)
    rows: list[tuple[str, ...]] = []
    for shard in range(manifest.num_shards):
        rows += _verify_shard(store, manifest, geometry, shard, files, metadata, report)
    for name in files:
        if name.startswith(f"{IMAGES_FOLDER}/"):
            _checked(store, run_id, files[name], report)
    found = {status: sum(row[4] == status for row in rows) for status in STATUSES}
    for status, number in found.items():
        report.count(status, number)
    report.count("rows", len(rows))
    if found != manifest.rows_by_status and len(rows) == manifest.num_rows:
        report.problems.append(Problem(manifest_key(run_id), f"rows {found}", f"rows {manifest.rows_by_status}"))
    _note_others(store, run_id, set(files), report)
    return rows


def _verify_shard(
    store: Store,
    manifest: Manifest,
    geometry: Geometry,
    shard: int,
    files: dict[str, StoredObject],
    metadata: dict[str, bytes | None],
    report: VerifyReport,
) -> list[tuple[str, ...]]:
    run_id = manifest.run_id
    name = rows_name(shard)
    key = f"{run_prefix(run_id)}/{name}"
    if name not in files:
        report.problems.append(Problem(key, "no entry in the manifest", "the rows of the shard"))
        return []
    data = _checked(store, run_id, files[name], report)
    table = _readable(data, ROW_SCHEMA, key, report)
    if table is None:
        return []
    start = shard * manifest.shard_rows
    wanted = list(range(start, min(start + manifest.shard_rows, manifest.num_rows)))
    if table.column("row").to_pylist() != wanted:
        report.problems.append(Problem(key, f"{table.num_rows} rows", f"rows {wanted[0]} to {wanted[-1]}"))
        return []
    statuses = table.column("status").to_pylist()
    is_ok = np.array([status == OK for status in statuses])
    layouts = array_layouts(geometry, manifest.trace_steps, manifest.trace_terms, has_noise=manifest.subject is None)
    for layout in layouts.values():
        chunk = chunk_of(layout, shard)
        array_json = metadata.get(f"{layout.name}/zarr.json")
        if chunk not in files:
            if layout.name == "w_plus" and is_ok.any():
                chunk_key = f"{run_prefix(run_id)}/{chunk}"
                report.problems.append(Problem(chunk_key, "no entry in the manifest", f"{is_ok.sum()} codes"))
            continue
        blob = _checked(store, run_id, files[chunk], report)
        if blob is not None and array_json is not None:
            _verify_values(blob, array_json, shard, f"{run_prefix(run_id)}/{chunk}", is_ok, layout.name, report)
    columns = [table.column(column).to_pylist() for column in ("image_id", "digest", "status")]
    return [(manifest.created, manifest.method_digest, *row) for row in zip(*columns, strict=True)]


def _verify_values(
    blob: bytes,
    array_json: bytes,
    shard: int,
    key: str,
    is_ok: np.ndarray[Any, np.dtype[np.bool_]],
    array: str,
    report: VerifyReport,
) -> None:
    """Checksums of a shard's object, and NaN exactly at rows that are not ok (the trace may have gaps)."""
    try:
        values = decode_shard(array_json, shard, blob, key)
    except ArchiveError as error:
        report.problems.append(Problem(key, str(error), "a Zarr shard"))
        return
    if len(values) != len(is_ok):
        report.problems.append(Problem(key, f"{len(values)} rows", f"{len(is_ok)} rows"))
        return
    flat = values.reshape(len(values), -1)
    finite = np.isfinite(flat).all(axis=1)
    empty = np.isnan(flat).all(axis=1)
    if array != TRACE and (is_ok & ~finite).any():
        rows = np.flatnonzero(is_ok & ~finite)
        report.problems.append(
            Problem(key, f"values that are not finite at {len(rows)} ok rows, first {rows[0]}", "finite values")
        )
    if (~is_ok & ~empty).any():
        rows = np.flatnonzero(~is_ok & ~empty)
        report.problems.append(
            Problem(key, f"values at {len(rows)} rows that are not ok, first {rows[0]}", "NaN at these rows")
        )


def _verify_images(
    data: bytes | None, manifest: Manifest, metadata: dict[str, bytes | None], report: VerifyReport
) -> None:
    key = f"{run_prefix(manifest.run_id)}/{IMAGES_NAME}"
    table = _readable(data, IMAGES_SCHEMA, key, report)
    plan = metadata.get("plan.json")
    if table is None or plan is None:
        return
    try:
        wanted = decode_document(plan, plan_key(manifest.run_id))["images_digest"]
    except ArchiveError as error:
        report.problems.append(Problem(plan_key(manifest.run_id), str(error), "the run's plan"))
        return
    if images_digest(table) != wanted:
        report.problems.append(Problem(key, "other images", f"the planned images, digest {wanted[:16]}"))


def _verify_unfinished(store: Store, run_id: str, report: VerifyReport) -> None:
    report.count("unfinished_runs")
    if not store.exists(plan_key(run_id)):
        report.information.append(f"{run_prefix(run_id)} has no plan: a start that was cut short")
        return
    try:
        plan = decode_document(store.get(plan_key(run_id)), plan_key(run_id))
    except ArchiveError as error:
        report.problems.append(Problem(plan_key(run_id), str(error), "the run's plan"))
        return
    winners = set()
    keys = store.keys(commit_prefix(run_id))
    for key in keys:
        try:
            commit = ShardCommit.decode(store.get(key), key)
        except ArchiveError as error:
            report.problems.append(Problem(key, str(error), "a commit marker"))
            continue
        winners.add(f"{commit.attempt}.{commit.token}")
    report.information.append(
        f"{run_prefix(run_id)} is not published: {len(keys)} of {plan['num_shards']} shards are committed"
    )
    _note_staging(store, run_id, winners, report)


def _note_others(store: Store, run_id: str, named: set[str], report: VerifyReport) -> None:
    """Objects of a published run that its manifest does not name."""
    prefix = run_prefix(run_id)
    _note_staging(store, run_id, set(), report)
    known = (f"{staging_prefix(run_id)}/", f"{commit_prefix(run_id)}/", manifest_key(run_id))
    for key in store.keys(prefix):
        if key.removeprefix(f"{prefix}/") not in named and not key.startswith(known):
            report.information.append(f"{key} is named by no manifest")


def _note_staging(store: Store, run_id: str, winners: set[str], report: VerifyReport) -> None:
    attempts = {key.split("/")[4]: "/".join(key.split("/")[:5]) for key in store.keys(staging_prefix(run_id))}
    for attempt, folder in sorted(attempts.items()):
        if attempt not in winners:
            report.information.append(f"{folder} was staged and never promoted: an attempt that was cut short")


def _verify_unique(runs: list[tuple[str, list[tuple[str, ...]]]], report: VerifyReport) -> None:
    """One row per method, image and content: again only if it changed meanwhile or had failed."""
    last: dict[tuple[str, str], tuple[str, str, str]] = {}
    for run_id, rows in sorted(runs, key=lambda run: (run[1][0][0] if run[1] else "", run[0])):
        for _, method_digest, image_id, digest, status in rows:
            before = last.get((method_digest, image_id))
            if before and before[0] == digest and FAILED not in (before[1], status):
                report.problems.append(
                    Problem(
                        manifest_key(run_id),
                        f"image {image_id} of content {digest[:16]} a second time, first in run {before[2]}",
                        "one row per method, image and content",
                    )
                )
            last[method_digest, image_id] = (digest, status, run_id)


def _verify_subjects(runs: dict[str, Manifest], report: VerifyReport) -> None:
    """What is edited is there, and has as many rows as its edit."""
    for run_id, manifest in runs.items():
        if manifest.subject is None:
            continue
        subject = runs.get(manifest.subject.run_id)
        if subject is None or subject.num_rows != manifest.num_rows:
            found = "nothing" if subject is None else f"{subject.num_rows} rows"
            wanted = f"{manifest.num_rows} rows in run {manifest.subject.run_id}, which it edits"
            report.problems.append(Problem(manifest_key(run_id), found, wanted))


def _verify_evaluation(store: Store, evaluation_id: str, runs: dict[str, Manifest], report: VerifyReport) -> None:
    key = evaluation_manifest_key(evaluation_id)
    try:
        info = EvaluationInfo.decode(store.get(key), key)
    except ArchiveNotFoundError:
        _verify_unfinished_evaluation(store, evaluation_id, report)
        return
    except StoreUnavailableError:
        raise
    except ArchiveError as error:
        report.problems.append(Problem(key, str(error), "the evaluation's manifest"))
        return
    report.count("evaluations")
    prefix = evaluation_prefix(evaluation_id)
    if info.run_id is not None and (info.run_id not in runs or runs[info.run_id].num_rows != info.num_rows):
        report.problems.append(Problem(key, "another or no run", f"{info.num_rows} rows in run {info.run_id}"))
    files = {file.name: _checked_object(store, f"{prefix}/{file.name}", file, report) for file in info.files}
    number = 0
    for shard in range(-(-info.num_rows // info.shard_rows)):
        name = measurements_name(shard)
        if name not in files:
            report.problems.append(Problem(f"{prefix}/{name}", "no entry in the manifest", "one"))
            continue
        table = _readable(files[name], MEASUREMENT_SCHEMA, f"{prefix}/{name}", report)
        number += 0 if table is None else table.num_rows
    report.count("measurements", number)
    if number != info.num_measurements and None not in files.values():
        report.problems.append(Problem(key, f"{number} measurements", f"{info.num_measurements}"))
    for key in store.keys(prefix):
        if key.removeprefix(f"{prefix}/") not in {*files, "_manifest.json"}:
            report.information.append(f"{key} is named by no manifest")


def _verify_unfinished_evaluation(store: Store, evaluation_id: str, report: VerifyReport) -> None:
    key = evaluation_plan_key(evaluation_id)
    try:
        plan = decode_document(store.get(key), key)
        wanted = EvaluationPlan(**{name: plan[name] for name in EvaluationPlan.__dataclass_fields__}).num_shards
    except ArchiveNotFoundError:
        report.information.append(f"{evaluation_prefix(evaluation_id)} has no plan: a start that was cut short")
        return
    except ArchiveError as error:
        report.problems.append(Problem(key, str(error), "the evaluation's plan"))
        return
    done = len(store.keys(f"{evaluation_prefix(evaluation_id)}/shards"))
    report.information.append(
        f"{evaluation_prefix(evaluation_id)} is not published: {done} of {wanted} shards are measured"
    )


def _checked(store: Store, run_id: str, file: StoredObject, report: VerifyReport) -> bytes | None:
    """The object's bytes if they are those of the manifest; else None, and the problem is noted."""
    return _checked_object(store, f"{run_prefix(run_id)}/{file.name}", file, report)


def _checked_object(store: Store, key: str, file: StoredObject, report: VerifyReport) -> bytes | None:
    report.count("objects")
    try:
        data = store.get(key)
    except ArchiveNotFoundError:
        report.problems.append(Problem(key, "nothing", f"{file.size} bytes"))
        return None
    report.count("bytes", len(data))
    if len(data) != file.size:
        report.problems.append(Problem(key, f"{len(data)} bytes", f"{file.size} bytes"))
        return None
    if sha256_of(data) != file.sha256:
        report.problems.append(Problem(key, f"sha256 {sha256_of(data)}", f"sha256 {file.sha256}"))
        return None
    return data


def _readable(data: bytes | None, schema: Any, key: str, report: VerifyReport) -> pa.Table | None:
    if data is None:
        return None
    try:
        return from_parquet(data, schema, key)
    except ArchiveError as error:
        report.problems.append(Problem(key, str(error), "a Parquet file of the archive's schema"))
        return None
