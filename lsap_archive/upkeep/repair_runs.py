"""Mending one run: an object gets back its bytes, or its shard is retired, or what is not published is taken away."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence

from lsap_archive.errors import ArchiveError, ArchiveNotFoundError, StoreUnavailableError
from lsap_archive.format.arrays import run_metadata
from lsap_archive.format.documents import sha256_of
from lsap_archive.format.layout import (
    MANIFEST_NAME,
    PLAN_NAME,
    Geometry,
    commit_key,
    copy_name,
    manifest_key,
    plan_key,
    retired_key,
    rows_name,
    run_prefix,
)
from lsap_archive.format.manifest import Manifest, ShardCommit
from lsap_archive.format.rows import count_by_status
from lsap_archive.reading.published import is_vital, read_row_files
from lsap_archive.reading.retirement import Retirement, retire
from lsap_archive.stores.store import Store
from lsap_archive.upkeep.repair_report import RepairReport
from lsap_archive.upkeep.verify_report import Problem
from lsap_archive.writing.run_writer import RunWriter

_SHARD_OF = (re.compile(r"rows/shard-(\d+)\.parquet"), re.compile(r"[a-z0-9_]+/c/(\d+)(?:/0)*"))
_ROW_OF = re.compile(r"images/(\d+)\.png")
_MARKER = re.compile(r"_commit/(\d+)\.json")
LOST_REASON = "the reason is lost: its document was damaged"
_RETIREMENT = re.compile(r"_retired/(\d+|run)\.json")


def bytes_or_none(store: Store, key: str) -> bytes | None:
    """An object, or None if there is none."""
    try:
        return store.get(key)
    except ArchiveNotFoundError:
        return None


def is_readable(read: Callable[[], object]) -> bool:
    """Whether a reader finds no fault with what is there now; a missing object is one."""
    try:
        read()
    except StoreUnavailableError:
        raise
    except ArchiveError:
        return False
    return True


def restore_manifest(store: Store, run_id: str, report: RepairReport) -> None:
    """Give a run its manifest back that is damaged, or missing although there is a copy of it.

    It is put together from the commit markers where there is no sound copy. If that fails too, the run is retired.
    """
    key, data = manifest_key(run_id), bytes_or_none(store, f"{run_prefix(run_id)}/{copy_name(MANIFEST_NAME)}")
    if data is None or not is_readable(functools.partial(Manifest.decode, data, key)):
        data = _manifest_of_markers(store, run_id)
    if data is None:
        _retire(store, run_id, None, [f"{key} is damaged and nothing tells any more what it held"], report)
        return
    report.run(run_id).restored += 1
    report.restored.append(key)
    if not report.dry_run:
        store.put(key, data)


def _manifest_of_markers(store: Store, run_id: str) -> bytes | None:
    try:
        return RunWriter.of(store, run_id).manifest_of_markers().encode()
    except StoreUnavailableError:
        raise
    except ArchiveError:
        return None


def _retire(store: Store, run_id: str, shard: int | None, problems: Sequence[str], report: RepairReport) -> None:
    report.retired.append(f"runs/{run_id}" if shard is None else f"shard {shard} of runs/{run_id}")
    if not report.dry_run:
        retire(store, run_id, shard, problems)


class PublishedRepair:
    """Mends one published run.

    Attributes:
        store: the archive.
        manifest: of the run.
        report: gets what was done.
    """

    def __init__(self, store: Store, manifest: Manifest, report: RepairReport) -> None:
        self.store = store
        self.manifest = manifest
        self.report = report
        self._prefix = run_prefix(manifest.run_id)
        self._files = {file.name: file for file in manifest.files}

    def mend(self, problems: Sequence[Problem]) -> None:
        """Restore what can be, retire the shards of what cannot."""
        account = self.report.run(self.manifest.run_id)
        account.method, account.is_edit = self.manifest.method, self.manifest.subject is not None
        lost: dict[int | None, list[str]] = {}
        for problem in problems:
            name = problem.key.removeprefix(f"{self._prefix}/")
            data = self._wanted(name)
            if data is not None:
                self._put(name, data)
            else:
                lost.setdefault(self._shard_of(name), []).append(str(problem))
        if None in lost:  # what all codes hang on
            everything = [sentence for sentences in lost.values() for sentence in sentences]
            lost = {None: everything}
        for shard, sentences in sorted(lost.items(), key=lambda one: -1 if one[0] is None else one[0]):
            _retire(self.store, self.manifest.run_id, shard, sentences, self.report)
            shards = self.manifest.own_shards if shard is None else (shard,)
            account.retired_shards += shards
            account.images += sum(self._num_rows(one) for one in shards)

    def _put(self, name: str, data: bytes) -> None:
        self.report.run(self.manifest.run_id).restored += 1
        self.report.restored.append(f"{self._prefix}/{name}")
        if not self.report.dry_run:
            self.store.put(f"{self._prefix}/{name}", data)

    def _wanted(self, name: str) -> bytes | None:
        """The bytes that should stand there, if they can still be had."""
        if match := _MARKER.fullmatch(name):
            return self._marker(int(match[1]))
        if match := _RETIREMENT.fullmatch(name):
            shard = None if match[1] == "run" else int(match[1])
            why = (LOST_REASON,)
            return Retirement(self.manifest.run_id, shard, why, self.manifest.created).encode()
        if name == copy_name(MANIFEST_NAME):
            return bytes_or_none(self.store, manifest_key(self.manifest.run_id))
        original = name.removeprefix(copy_name(""))
        if original not in self._files:
            return None
        wanted = self._files[original]
        for data in self._candidates(original):
            if (len(data), sha256_of(data)) == (wanted.size, wanted.sha256):
                return data
        return None

    def _candidates(self, name: str) -> Iterator[bytes]:
        """What may be the bytes of an object: itself, its copy, the staged one, or made once more."""
        places = [name, copy_name(name)]
        shard = self._shard_of(name)
        if shard is not None:
            places += self._staged(shard, name)
        for place in places:
            data = bytes_or_none(self.store, f"{self._prefix}/{place}")
            if data is not None:
                yield data
        if is_vital(name):
            yield from self._made_again(name)

    def _staged(self, shard: int, name: str) -> list[str]:
        key = commit_key(self.manifest.run_id, shard)
        data = bytes_or_none(self.store, key)
        if data is None or not is_readable(lambda: ShardCommit.decode(data, key)):
            return []
        return [one.staged for one in ShardCommit.decode(data, key).objects if one.name == name and one.staged]

    def _made_again(self, name: str) -> Iterator[bytes]:
        """Metadata of arrays, which follows from the manifest."""
        geometry = Geometry.from_dict(self.manifest.geometry)
        found = run_metadata(self.manifest, geometry, self.manifest.generator["digest"])
        if name in found:
            yield found[name]

    def _marker(self, shard: int) -> bytes | None:
        """The commit marker of a shard as the manifest tells it; None if its rows are lost as well."""
        stored = self._files.get(rows_name(shard))
        if stored is None or not is_readable(lambda: read_row_files(self.store, self.manifest.run_id, [stored])):
            return None
        rows = read_row_files(self.store, self.manifest.run_id, [stored])[0]
        objects = [file for file in self.manifest.files if self._shard_of(file.name) == shard]
        return ShardCommit(
            run_id=self.manifest.run_id,
            shard=shard,
            attempt=rows.column("attempt")[0].as_py(),
            token="",
            created=self.manifest.created,
            rows_by_status=count_by_status(rows),
            objects=tuple(objects),
        ).encode()

    def _shard_of(self, name: str) -> int | None:
        """The shard that an object belongs to; None for one that the whole run hangs on."""
        if match := _ROW_OF.fullmatch(name):
            return int(match[1]) // self.manifest.shard_rows
        for pattern in (*_SHARD_OF, _MARKER):
            if match := pattern.fullmatch(name):
                return int(match[1])
        return None

    def _num_rows(self, shard: int) -> int:
        return min(self.manifest.shard_rows, self.manifest.num_rows - shard * self.manifest.shard_rows)


class UnfinishedRepair:
    """Mends one run that is not published: takes away what is damaged, so that the run that goes on makes it again.

    Attributes:
        store: the archive.
        run_id: the run.
        report: gets what was done.
    """

    def __init__(self, store: Store, run_id: str, report: RepairReport) -> None:
        self.store = store
        self.run_id = run_id
        self.report = report
        self._prefix = run_prefix(run_id)

    def mend(self, problems: Sequence[Problem]) -> None:
        """Take away damaged markers, markers of damaged objects, and a plan that is damaged or whose objects are."""
        names = {problem.key.removeprefix(f"{self._prefix}/") for problem in problems}
        if PLAN_NAME in names or any(is_vital(name) for name in names):
            self._withdraw(sorted(name for name in names if is_vital(name) and name != PLAN_NAME))
        for key in self.store.keys(f"{self._prefix}/_commit"):
            name = key.removeprefix(f"{self._prefix}/")
            if name in names or names & self._objects_of(key):
                self._remove(key)
        for name in names:
            if match := _RETIREMENT.fullmatch(name):
                shard = None if match[1] == "run" else int(match[1])
                self._put_retirement(shard)

    def _withdraw(self, damaged: Sequence[str]) -> None:
        """Take away the plan, then damaged objects that it names: whoever plans the same again writes them again."""
        self._remove(plan_key(self.run_id))
        for name in damaged:
            self._remove(f"{self._prefix}/{name}")

    def _remove(self, key: str) -> None:
        self.report.removed.append(key)
        self.report.run(self.run_id)
        if not self.report.dry_run and not self.store.exists(manifest_key(self.run_id)):
            self.store.delete(key)

    def _objects_of(self, key: str) -> set[str]:
        data = bytes_or_none(self.store, key)
        if data is None or not is_readable(lambda: ShardCommit.decode(data, key)):
            return set()
        return {one.name for one in ShardCommit.decode(data, key).objects}

    def _put_retirement(self, shard: int | None) -> None:
        key = retired_key(self.run_id, shard)
        self.report.restored.append(key)
        if not self.report.dry_run:
            why = (LOST_REASON,)
            self.store.put(key, Retirement(self.run_id, shard, why, "").encode())
