"""Mending one run: an object gets back its bytes, or its shard is retired, or what is not published is taken away."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set

from lsap_archive.errors import OBJECT_ERRORS
from lsap_archive.format.layout import (
    COMMIT_FOLDER,
    IMAGES_NAME,
    MANIFEST_NAME,
    PLAN_NAME,
    commit_name,
    copy_name,
    rows_name,
    rows_of_shard,
)
from lsap_archive.format.manifest import Manifest, ShardCommit
from lsap_archive.format.rows import IMAGES_SCHEMA, count_by_status, from_parquet
from lsap_archive.format.shards import coordinate_objects, run_metadata
from lsap_archive.reading.checked import is_vital, read_header, read_row_files
from lsap_archive.upkeep.repair_publication import PublicationRepair, bytes_or_none, is_readable
from lsap_archive.upkeep.repair_report import flow_of
from lsap_archive.writing.run_writer import RunWriter

_MARKER = re.compile(r"_commit/(\d+)\.json")
_SHARD_OF = (re.compile(r"(?:rows|previews)/shard-(\d+)\.parquet"), re.compile(r"[a-z0-9_]+/c/(\d+)(?:/0)*"), _MARKER)
_PREVIEWS = re.compile(r"previews/shard-(\d+)\.parquet")
_ROW_OF = re.compile(r"images/(\d+)\.png")


class RunRepair(PublicationRepair[Manifest]):
    """Mends one run, shard by shard."""

    def restore_manifest(self) -> bool:
        """From the copy, else put together from the commit markers; if that fails too, the run is retired."""
        if super().restore_manifest():
            return True
        try:
            data = RunWriter(self.store, self.publication.name, *read_header(self.store)).manifest_of_markers().encode()
        except OBJECT_ERRORS:
            key = self.publication.key(MANIFEST_NAME)
            self.retire([f"{key} is damaged or gone, and nothing tells any more what it held"])
            return False
        self.restore(MANIFEST_NAME, data)
        return True

    def restore(self, name: str, data: bytes) -> None:
        """Also count it for the run."""
        self.report.run(self.publication.name).restored += 1
        super().restore(name, data)

    def remove(self, name: str) -> None:
        """Also name the run in the report."""
        self.report.run(self.publication.name)
        super().remove(name)

    def mend_published(self, manifest: Manifest, damaged: Mapping[str, Sequence[str]]) -> list[int | None]:
        """Also report the run's method, and how many of its images are lost."""
        account = self.report.run(manifest.run_id)
        damaged = self._without_previews(manifest, damaged)
        account.method, account.flow = manifest.method, flow_of(manifest.subject)
        lost = super().mend_published(manifest, damaged)
        for shard in manifest.own_shards if None in lost else [one for one in lost if one is not None]:
            account.retired_shards.append(shard)
            account.images += len(rows_of_shard(shard, manifest.shard_rows, manifest.num_rows))
        return lost

    def _without_previews(self, manifest: Manifest, damaged: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
        """What is damaged but for previews: these are mended from the staged copy, else taken away, and codes stay."""
        previews = [name for name in damaged if _PREVIEWS.fullmatch(name)]
        for name in previews:
            if (data := self.wanted(manifest, name)) is not None:
                self.restore(name, data)
                continue
            self.report.removed.append(self.publication.key(name))
            if not self.report.dry_run:
                self.store.delete(self.publication.key(name))
        return {name: sentences for name, sentences in damaged.items() if name not in previews}

    def take_away(self, damaged: Set[str]) -> None:
        """Take away damaged markers, markers of damaged objects, and a plan that is damaged or whose objects are.

        The plan comes first: whoever plans the same again then writes again what it names.
        """
        vital = {name for name in damaged if is_vital(name)}
        for name in (PLAN_NAME, *sorted(vital - {PLAN_NAME})) if vital else ():
            self.remove(name)
        for key in self.store.keys(self.publication.key(COMMIT_FOLDER)):
            name, commit = key.removeprefix(f"{self.publication.prefix}/"), self._commit_at(key)
            objects = set() if commit is None else {one.name for one in commit.objects}
            if name in damaged or damaged & objects:
                self.remove(name)

    def shard_of(self, manifest: Manifest, name: str) -> int | None:
        """The shard that an object belongs to; None for one that the whole run hangs on."""
        if match := _ROW_OF.fullmatch(name):
            return int(match[1]) // manifest.shard_rows
        if is_vital(name):
            return None
        found = (pattern.fullmatch(name) for pattern in _SHARD_OF)
        return next((int(match[1]) for match in found if match), None)

    def wanted(self, manifest: Manifest, name: str) -> bytes | None:
        """Also commit markers, which say what the manifest says."""
        if match := _MARKER.fullmatch(name):
            return self._marker(manifest, int(match[1]))
        return super().wanted(manifest, name)

    def candidates(self, manifest: Manifest, name: str) -> Iterator[bytes]:
        """Also the staged object, metadata of arrays, which follow from the manifest, and coordinates."""
        yield from super().candidates(manifest, name)
        shard = self.shard_of(manifest, name)
        commit = None if shard is None else self._commit_at(self.publication.key(commit_name(shard)))
        if commit is not None:
            yield from self.those_at(*(one.staged for one in commit.objects if one.name == name and one.staged))
        if is_vital(name):
            yield from (made[name] for made in self._made_again(manifest) if name in made)

    def _made_again(self, manifest: Manifest) -> Iterator[dict[str, bytes]]:
        """What a run begins with as it follows from manifest and images, by the name; before version 7 otherwise."""
        digest = manifest.generator["digest"]
        yield run_metadata(manifest, digest)
        yield run_metadata(manifest, digest, has_coordinates=False)
        key = self.publication.key(IMAGES_NAME)
        for data in self.those_at(IMAGES_NAME, copy_name(IMAGES_NAME)):
            try:
                ids = from_parquet(data, IMAGES_SCHEMA, key).column("image_id").to_pylist()
            except OBJECT_ERRORS:
                continue
            if len(ids) == manifest.num_rows:
                yield coordinate_objects(manifest, digest, ids)

    def _commit_at(self, key: str) -> ShardCommit | None:
        """A commit marker; None if it is missing or damaged."""
        data = bytes_or_none(self.store, key)
        if data is None or not is_readable(lambda: ShardCommit.decode(data, key)):
            return None
        return ShardCommit.decode(data, key)

    def _marker(self, manifest: Manifest, shard: int) -> bytes | None:
        """The commit marker of a shard as the manifest tells it; None if its rows are lost as well."""
        stored = [file for file in manifest.files if file.name == rows_name(shard)]
        if not stored or not is_readable(lambda: read_row_files(self.store, manifest.run_id, stored)):
            return None
        (rows,) = read_row_files(self.store, manifest.run_id, stored)
        return ShardCommit(
            run_id=manifest.run_id,
            shard=shard,
            attempt=rows.column("attempt")[0].as_py(),
            token="",
            created=manifest.created,
            rows_by_status=count_by_status(rows),
            objects=tuple(file for file in manifest.files if self.shard_of(manifest, file.name) == shard),
        ).encode()
