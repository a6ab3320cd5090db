"""What of an archive is exported: which images by which methods, which arrays, and pictures; a batch at a time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lsap_archive.errors import ArchiveKeyError, ArchiveMismatchError
from lsap_archive.format.layout import TRACE, W_PLUS, noise_name
from lsap_archive.format.rows import OK, ROW_SCHEMA
from lsap_archive.reading.archive import Archive

NOISE = "noise"
"""Stands for every noise map."""
IMAGE, ORIGINAL = "image", "original"
"""Columns of pictures: what a method made of an image, and the image itself."""
_BATCH_BYTES = 32 * 2**20
_BATCH_ROWS, _BATCH_PICTURES = 512, 32
_TAKEN = {*ROW_SCHEMA.names, IMAGE, ORIGINAL}


@dataclass(frozen=True)
class Batch:
    """Some images of one method, and what is exported of each.

    Attributes:
        rows: their rows, in ROW_SCHEMA.
        arrays: by name, each [n, ...], float32.
        pictures: files of pictures by column, None where there is none.
    """

    rows: pa.RecordBatch
    arrays: dict[str, NDArray[np.float32]]
    pictures: dict[str, list[bytes | None]]


@dataclass
class Chosen:
    """What is exported. Build it with `choose`.

    Attributes:
        archive: that it is taken from.
        methods: of the images, sorted.
        query: SQL of their rows, those of a method together.
        shapes: of one image's part of each array, by name; codes first.
        has_pictures: whether pictures are exported.
        trace_steps: where a trace is exported.
        trace_terms: likewise.
        num_pictures: of each column, counted while batches are read.
    """

    archive: Archive
    methods: list[str]
    query: str
    shapes: dict[str, tuple[int, ...]]
    has_pictures: bool
    trace_steps: tuple[int, ...] = ()
    trace_terms: tuple[str, ...] = ()
    num_pictures: Counter[str] = field(default_factory=Counter)

    @cached_property
    def picture_columns(self) -> tuple[str, ...]:
        """Names of the columns of pictures."""
        return (IMAGE, ORIGINAL) if self.has_pictures else ()

    def batches(self) -> Iterator[Batch]:
        """Every image once, in batches of one method that fit into memory.

        Raises:
            ArchiveKeyError: an image has no code, or its run kept no such array.
            CorruptArchiveError: an object is missing or altered.
        """
        item_bytes = 4 * sum(map(math.prod, self.shapes.values()))
        size = max(1, min(_BATCH_PICTURES if self.has_pictures else _BATCH_ROWS, _BATCH_BYTES // item_bytes))
        with self.archive.sql_batches(self.query) as answer:
            for rows in answer:
                for part in _of_one_method(rows, size):
                    yield self._batch(part)

    def check_pictures(self) -> None:
        """Make sure, after all batches, that there were some pictures if they were asked for.

        Raises:
            ArchiveMismatchError: there was none.
        """
        if self.has_pictures and not self.num_pictures.total():
            raise ArchiveMismatchError(
                f"{self.archive.url} keeps no picture of what is exported: leave pictures out, or write them with "
                "`lsap archive images`"
            )

    def _batch(self, rows: pa.RecordBatch) -> Batch:
        ids, method = rows.column("image_id").to_pylist(), rows.column("method")[0].as_py()
        arrays = {}
        of_arrays: dict[str, Any] = {}
        for name in self.shapes:
            if name not in of_arrays:
                of_arrays |= self._values(name, ids, method)
            arrays[name] = of_arrays[name]
        pictures: dict[str, list[bytes | None]] = {}
        if self.has_pictures:
            kept = self.archive.kept_images(ids, method)
            lacking = [image_id for image_id, one in zip(ids, kept, strict=True) if one is None]
            previews = dict(zip(lacking, self.archive.previews(lacking, method), strict=True)) if lacking else {}
            pictures[IMAGE] = [
                previews[image_id] if one is None else one for image_id, one in zip(ids, kept, strict=True)
            ]
            pictures[ORIGINAL] = self.archive.original_previews(ids)
        self.num_pictures.update({column: sum(one is not None for one in of) for column, of in pictures.items()})
        return Batch(rows, arrays, pictures)

    def _values(self, name: str, ids: list[str], method: str) -> dict[str, Any]:
        if name == W_PLUS:
            return {W_PLUS: self.archive.codes(ids, method)}
        if name == TRACE:
            trace = self.archive.trace(ids, method)
            if (trace.steps, trace.terms) != (self.trace_steps, self.trace_terms):
                raise ArchiveMismatchError(
                    f"traces of {method} have the terms {', '.join(trace.terms)} at {len(trace.steps)} steps, others "
                    "have other ones: export one method at a time"
                )
            return {TRACE: trace.values}
        if name in self._noise_names:
            maps = self.archive.noise(ids, method)
            return dict(zip(self._noise_names, maps, strict=True))
        refined = self.archive.refined(ids, method)
        if name not in refined:
            raise ArchiveKeyError(f"images of {method} have no array {name}: leave it out, or choose other methods")
        return refined

    @cached_property
    def _noise_names(self) -> list[str]:
        return [noise_name(index) for index in range(len(self.archive.geometry.noise_sizes))]


def choose(
    archive: Archive,
    *,
    methods: Sequence[str] = (),
    query: str | None = None,
    arrays: Sequence[str] = (W_PLUS,),
    has_pictures: bool = False,
) -> Chosen:
    """What to export, after a look at all that can be known before.

    Args:
        archive: that it is taken from.
        methods: names of methods or edits; none for all.
        query: SQL that gives `image_id`, and `method` unless all that have it are wanted; without a query every image
            that has a code of its own (status "ok") is exported.
        arrays: names: "w_plus", "noise" for all noise maps, "trace", or what refinements keep. Codes always are.
        has_pictures: also what a method made of each image, and the image itself, as the archive keeps them: images of
            edits and refinements, else previews.

    Raises:
        ArchiveKeyError: an unknown method or array, or a chosen image has no code.
        ArchiveMismatchError: nothing is chosen, or methods have arrays of several shapes.
        QueryError: the query is refused.
    """
    known = [*archive.methods, *archive.edits]
    for method in methods:
        if method not in known:
            raise ArchiveKeyError(f"{archive.url} has no method {method}: it has {', '.join(known) or 'none'}")
    asked = _rows_query(archive, methods, query)
    counted = archive.sql(
        f"select method, count(*) as number from ({asked}) group by method order by method"
    ).to_pylist()
    if not counted:
        raise ArchiveMismatchError(
            f"{archive.url}: no image with a code is chosen: choose other methods, or another query"
        )
    found = [one["method"] for one in counted]
    shapes, steps, terms = _shapes(archive, found, arrays)
    return Chosen(archive, found, f"{asked} order by method, run_id, row", shapes, has_pictures, steps, terms)


def _rows_query(archive: Archive, methods: Sequence[str], query: str | None) -> str:
    """SQL of the chosen rows of `latest`; a query is asked once before, so that nothing it names is left out."""
    named = ", ".join("'" + method.replace("'", "''") + "'" for method in methods)
    of_methods = f"method in ({named})" if methods else "true"
    if query is None:
        return f"select * from latest where status = '{OK}' and {of_methods}"
    inner = f"({query.strip().rstrip(';')}\n)"
    columns = archive.sql(f"select * from {inner} limit 0").column_names
    if "image_id" not in columns:
        raise ArchiveMismatchError(f"the query gives {', '.join(columns)}: image_id is wanted, and perhaps method")
    by = "image_id, method" if "method" in columns else "image_id"
    wanted = f"select distinct {by} from {inner}" + (f" where {of_methods}" if "method" in columns else "")
    rows = f"select * from latest where {of_methods}"
    unknown = archive.sql(f"select {by} from ({wanted}) anti join ({rows}) using ({by}) limit 1").to_pylist()
    if unknown:
        told = " of method ".join(str(unknown[0][name]) for name in by.split(", "))
        raise ArchiveKeyError(f"{archive.url} has no image {told}, which the query gives: its table latest has the ids")
    return f"select * from ({rows}) semi join ({wanted}) using ({by})"


def _sample(archive: Archive, method: str) -> list[str]:
    """An image that has a code by a method, if there is one."""
    query = f"select image_id from latest where method = $method and status = '{OK}' limit 1"
    ids: list[str] = archive.sql(query, method=method).column("image_id").to_pylist()
    return ids


def _shapes(
    archive: Archive, methods: Sequence[str], arrays: Sequence[str]
) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...], tuple[str, ...]]:
    """Shapes of one image's part of each array, and steps and terms of a trace."""
    geometry = archive.geometry
    found: dict[str, tuple[int, ...]] = {W_PLUS: (geometry.num_ws, geometry.w_dim)}
    maps = {noise_name(index): size for index, size in enumerate(geometry.noise_sizes)}
    steps: tuple[int, ...] = ()
    terms: tuple[str, ...] = ()
    for name in dict.fromkeys(arrays):
        if name == W_PLUS:
            continue
        if name == NOISE or name in maps:
            for method in methods:
                if (ids := _sample(archive, method)) and not all(archive.has_noise(ids, method)):
                    raise ArchiveKeyError(
                        f"images of {method} have no noise maps of their own, the generator's constant ones belong to "
                        f"them: leave {name} out, or choose other methods"
                    )
            found |= maps if name == NOISE else {name: maps[name]}
            continue
        if name in _TAKEN:
            raise ArchiveKeyError(
                f"{name} is a column of the rows: choose the arrays {W_PLUS}, {NOISE}, {TRACE} or others"
            )
        for method in methods:
            ids = _sample(archive, method)
            if not ids:
                continue
            if name == TRACE:
                trace = archive.trace(ids, method)
                shape, steps, terms = trace.values.shape[1:], trace.steps, trace.terms
            else:
                refined = archive.refined(ids, method)
                if name not in refined:
                    raise ArchiveKeyError(
                        f"{archive.url} keeps no array {name} of {method}: it keeps {', '.join(refined)}"
                    )
                shape = refined[name].shape[1:]
            if found.setdefault(name, shape) != shape:
                raise ArchiveMismatchError(
                    f"{name} of an image is {list(found[name])} in one method and {list(shape)} in {method}: "
                    "export them apart"
                )
    return found, steps, terms


def _of_one_method(rows: pa.RecordBatch, size: int) -> Iterator[pa.RecordBatch]:
    """Parts of at most so many rows, each of one method; rows of a method are together."""
    names = rows.column("method").to_pylist()
    start = 0
    for end in range(1, len(names) + 1):
        if end == len(names) or names[end] != names[start] or end - start == size:
            yield rows.slice(start, end - start)
            start = end
