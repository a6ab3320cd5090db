"""What a run works on: its images, its method, the size of its shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lsap_archive.errors import ArchiveMismatchError
from lsap_archive.format.arrays import RunArray, trace_of
from lsap_archive.format.coordinates import COORDINATES
from lsap_archive.format.documents import as_json, sha256_of
from lsap_archive.format.layout import INNER_CHUNK_ROWS, TRACE, checked_name
from lsap_archive.format.rows import IMAGES_SCHEMA
from lsap_archive.format.subject import Subject

DIGESTED_COLUMNS = ("row", "image_id", "uri", "digest")


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """One image of a run.

    Attributes:
        row: its row in the run's arrays, counted from 0.
        image_id: its name, the same in every run.
        uri: where it lies.
        digest: digest of its content.
        version: what the listing of its storage told that changes whenever the content does, or None.
    """

    row: int
    image_id: str
    uri: str
    digest: str
    version: str | None = None


@dataclass(frozen=True)
class RunPlan:
    """One method over a list of images.

    Attributes:
        run_id: name of the run, unique in the archive.
        method: published name of the method, e.g. "lsap_o".
        method_digest: digest of everything that decides the result (method, configuration, weights).
        config: the configuration, JSON values.
        provenance: versions, digests, seeds (`Provenance.to_dict()`), JSON values.
        rows: the images, `row` counting from 0; ids are unique.
        arrays: what is kept of each image: `code_arrays` always; `noise_arrays`, `trace_arrays` or any other where the
            method has them.
        shard_rows: rows of a shard, below 16 or a multiple of 16. 512 measured best at K = 18, D = 512.
        subject: of a refinement or an edit, the run that it is made of, which has the same rows; None for an inversion.
        shards: of such a run that makes up for retired shards of another, exactly those; None for all.

    Raises:
        ArchiveMismatchError: any of this does not hold.
    """

    run_id: str
    method: str
    method_digest: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    rows: tuple[PlannedRow, ...]
    arrays: tuple[RunArray, ...]
    shard_rows: int = 512
    subject: Subject | None = None
    shards: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        checked_name(self.run_id, "run id")
        object.__setattr__(self, "rows", tuple(self.rows))
        object.__setattr__(self, "arrays", tuple(self.arrays))
        if not self.rows:
            raise ArchiveMismatchError(f"the plan of run {self.run_id} has no images: there is nothing to run")
        for index, planned in enumerate(self.rows):
            if planned.row != index:
                raise ArchiveMismatchError(
                    f"image {planned.image_id} has row {planned.row} at place {index} of run {self.run_id}: "
                    "number the rows 0, 1, 2, ..."
                )
        twice = [image_id for image_id, times in Counter(p.image_id for p in self.rows).items() if times > 1]
        if twice:
            raise ArchiveMismatchError(f"image {twice[0]} is planned twice in run {self.run_id}: plan it once")
        inner = min(INNER_CHUNK_ROWS, self.shard_rows)
        if self.shard_rows < 1 or self.shard_rows % inner:
            raise ArchiveMismatchError(
                f"shard_rows is {self.shard_rows}: 1 to {INNER_CHUNK_ROWS}, or a multiple of {INNER_CHUNK_ROWS}"
            )
        names = Counter(array.name for array in self.arrays)
        if names.total() > len(names):
            raise ArchiveMismatchError(f"run {self.run_id} declares an array twice: {', '.join(names.elements())}")
        if self.subject is not None and self.subject.is_edit and TRACE in names:
            raise ArchiveMismatchError(f"run {self.run_id} edits {self.subject.run_id}: an edit has no trace")
        if taken := sorted(set(COORDINATES) & set(names)):
            raise ArchiveMismatchError(
                f"run {self.run_id} declares an array {taken[0]}, as one of the coordinates of every run is called: "
                "choose another name"
            )
        self._check_shards()

    def _check_shards(self) -> None:
        if self.shards is None:
            return
        if self.subject is None or not self.shards or not set(self.shards) <= set(range(self.num_shards)):
            raise ArchiveMismatchError(
                f"run {self.run_id} has the shards {self.shards}: an edit or a refinement may have some of its "
                f"{self.num_shards} shards, an inversion has all"
            )

    @property
    def num_rows(self) -> int:
        """N, how many images there are."""
        return len(self.rows)

    @property
    def num_shards(self) -> int:
        """ceil(N / shard_rows)."""
        return -(-self.num_rows // self.shard_rows)

    def table(self) -> pa.Table:
        """The images in IMAGES_SCHEMA."""
        return planned_table(self.rows)

    def document(self) -> dict[str, Any]:
        """plan.json without what start_run adds, as JSON gives it back."""
        steps, terms = trace_of(self.arrays)
        names = ("run_id", "method", "method_digest", "config", "provenance", "num_rows", "shard_rows", "num_shards")
        values = {name: getattr(self, name) for name in names}
        values |= {"trace_steps": steps, "trace_terms": terms}  # older versions know these, and no arrays
        values["arrays"] = [vars(array) for array in self.arrays]
        values["images_digest"] = images_digest(self.table())
        if self.subject is not None:  # inversions are planned as they always were
            values["subject"] = self.subject.to_dict()
        if self.shards is not None:
            values["shards"] = self.shards
        document: dict[str, Any] = as_json(values, f"the plan of run {self.run_id}")
        return document


def planned_table(rows: Sequence[PlannedRow]) -> pa.Table:
    """Planned rows as a pyarrow table in IMAGES_SCHEMA."""
    columns = {name: [getattr(planned, name) for planned in rows] for name in IMAGES_SCHEMA.names}
    return pa.table(columns, schema=IMAGES_SCHEMA)


def images_digest(table: pa.Table) -> str:
    """Digest of the planned images, whatever wrote the file they lie in; versions are no part of what is worked on."""
    lines = zip(*(table.column(name).to_pylist() for name in DIGESTED_COLUMNS), strict=True)
    return sha256_of("\n".join(repr(line) for line in lines).encode())


def first_difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Name of the first field that differs.

    Provenance may differ, as whoever resumes a run is elsewhere, and how its arrays lie in their objects, which the run
    has from its beginning; and plans before version 4 declare no arrays.
    """
    names = [name for name in wanted if name != "provenance" and (name != "arrays" or name in found)]
    return next((name for name in names if _decisive(found, name) != _decisive(wanted, name)), None)


def _decisive(document: Mapping[str, Any], name: str) -> Any:
    value = document.get(name)
    if name != "arrays" or not isinstance(value, list):
        return value
    return [{key: of for key, of in one.items() if key not in ("compression", "chunk_rows")} for one in value]
