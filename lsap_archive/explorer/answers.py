"""What the page's script asks for, and what it gets. Texts go out as JSON, of which the script never makes HTML."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import IO, Any, cast

import numpy as np
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from lsap_archive.errors import ArchiveError, ArchiveKeyError, QueryError
from lsap_archive.explorer.chosen import Chosen, finite
from lsap_archive.explorer.columns import literal, quoted
from lsap_archive.explorer.downloads import codes_as_npz, ids_as_csv, ids_as_text, most_codes
from lsap_archive.explorer.live import LiveRenderer
from lsap_archive.explorer.pictures import PictureDesk, media_type
from lsap_archive.explorer.selection import Selection, read_selection
from lsap_archive.explorer.tables import Tables
from lsap_archive.reading.archive import Archive
from lsap_archive.reading.nearest.spaces import Metric, Space

_MOST_ROWS = 400  # of one answer
_MOST_METHODS = 12  # that are compared
_MOST_NEIGHBOURS = 100
_QUICK_VALUES = {"w_plus": 4e8, "w": 4e8, "s_n": 5e7}
"""Numbers of codes that are compared for neighbours without being asked twice: about a second."""
_RENDERS_WAITING = 4  # that are made one after the other; a page asks for one at a time
_CHUNK = 2**18
_FOREVER = "private, max-age=31536000, immutable"


class Answers:
    """Answers requests, each from a thread of its own."""

    def __init__(self, archive: Archive, live: LiveRenderer | None) -> None:
        self._archive = archive
        self._live = live
        self._tables = Tables(archive)
        self._chosen = Chosen(self._tables)
        self._methods = [*archive.methods, *archive.edits]
        self._desks = {name: PictureDesk(partial(archive.previews, method=name)) for name in self._methods}
        self._originals = PictureDesk(archive.original_previews)
        self._one_search = threading.Lock()
        self._renders = threading.BoundedSemaphore(_RENDERS_WAITING)

    def archive(self, request: Request) -> Response:
        """What there is: methods, columns, sliders, limits."""
        return _json(self._about)

    def selection(self, request: Request) -> Response:
        """Some rows of a selection, and where an image stands in it."""
        selection = self._selection(request)
        places = self._chosen.places(selection)
        offset, limit = _number(request, "offset", 0), min(_number(request, "limit", 0), _MOST_ROWS)
        values = self._values(request)
        rows = self._chosen.rows(places[offset : offset + limit], values)
        compared = self._compared(request)
        ids = [row["image_id"] for row in rows]
        others = self._chosen.of_methods(ids, compared, values)
        shown = [
            {
                **_shown(row, values),
                "others": {
                    name: _shown(others[row["image_id"], name], values)
                    for name in compared
                    if (row["image_id"], name) in others
                },
            }
            for row in rows
        ]
        answer: dict[str, Any] = {"total": len(places), "offset": offset, "rows": shown}
        if around := request.query_params.get("around"):
            answer["index"] = self._index(places, around)
        return _json(answer)

    def histogram(self, request: Request) -> Response:
        """How a column is distributed in a selection."""
        return _json(self._chosen.histogram(self._selection(request), request.query_params.get("column", "")))

    def image(self, request: Request) -> Response:
        """Every row of an image, with all columns."""
        rows = self._chosen.whole_rows(image_id := _text(request, "image"))
        if not rows:
            raise ArchiveKeyError(f"{self._archive.url} has no image {image_id}")
        shown = [
            {**_shown(row, []), "columns": {name: finite(value) for name, value in row.items() if value is not None}}
            for row in rows
        ]
        return _json({"image": image_id, "rows": shown})

    def neighbours(self, request: Request) -> Response:
        """The images whose codes are nearest to that of one, without itself."""
        image_id, method = _text(request, "image"), _text(request, "method")
        wanted = min(max(_number(request, "k", 12), 1), _MOST_NEIGHBOURS)
        space = cast(Space, request.query_params.get("space", "w_plus"))  # unknown ones are told by the reader
        metric = cast(Metric, request.query_params.get("metric", "euclidean"))
        with self._one_search:
            code = self._archive.codes([image_id], method)[0]
            found = self._archive.nearest(code, wanted + 1, method, space=space, metric=metric).to_pylist()
        distances = {one["image_id"]: one["distance"] for one in found if one["image_id"] != image_id}
        rows = self._chosen.of_methods(list(distances), [method], [])
        shown = [
            {**_shown(rows[name, method], []), "distance": finite(distance)}
            for name, distance in list(distances.items())[:wanted]
            if (name, method) in rows
        ]
        return _json({"rows": shown})

    def picture(self, request: Request) -> Response:
        """The kept preview of an image by a method, or of its original; 404 where there is none."""
        image_id = _text(request, "image")
        if request.query_params.get("original"):
            desk = self._originals
        else:
            method = _text(request, "method")
            if method not in self._desks:
                raise ArchiveKeyError(f"no method {method}")
            desk = self._desks[method]
        picture = desk.picture(image_id)
        kind = None if picture is None else media_type(picture)
        if picture is None or kind is None:
            return Response("no preview kept", 404, {"Cache-Control": "no-cache"}, "text/plain")  # repair may mend it
        caching = {
            "Cache-Control": _FOREVER if request.query_params.get("v") else "no-cache",
            "ETag": f'"{hashlib.sha256(picture).hexdigest()[:32]}"',
        }
        if caching["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=caching)
        return Response(picture, headers=caching, media_type=kind)

    def live(self, request: Request) -> Response:
        """An image edited by the sliders."""
        if self._live is None:
            raise QueryError("no generator is at hand: start the explorer with one, by `lsap archive explore`")
        ends = {one.name: (one.low, one.high) for one in self._live.directions}
        strengths = {}
        for text in request.query_params.getlist("strength"):
            name, _, value = text.rpartition("~")
            if name not in ends:
                raise QueryError(f"no direction {name}: there are {', '.join(ends)}")
            strengths[name] = _within(value, *ends[name])
        if not self._renders.acquire(blocking=False):  # those who wait would leave no thread for anybody else
            raise ArchiveError("other pictures are being rendered: move the slider again in a moment")
        try:
            picture = self._live.render(_text(request, "image"), _text(request, "method"), strengths)
        finally:
            self._renders.release()
        kind = media_type(picture)
        assert kind is not None, "a WebP or PNG file was promised"
        return Response(picture, headers={"Cache-Control": "no-store"}, media_type=kind)

    def download(self, request: Request) -> Response:
        """The selection as a file: ids.txt, ids.csv, codes.npz, selection.sql."""
        name = request.path_params["name"]
        selection = self._selection(request)
        if name == "selection.sql":
            text = f"-- {json.dumps(self._archive.url)}\n{selection.to_file(self._tables.columns.values())}"
            return _file(name, "application/sql", [text])
        if name not in ("ids.txt", "ids.csv", "codes.npz"):
            raise QueryError(f"no file {name}: there are ids.txt, ids.csv, codes.npz and selection.sql")
        places = self._chosen.places(selection)
        if name == "ids.txt":
            return _file(name, "text/plain", ids_as_text(self._chosen, places))
        if name == "ids.csv":
            return _file(name, "text/csv", ids_as_csv(self._chosen, places, self._values(request)))
        codes = codes_as_npz(self._archive, self._chosen, places)
        return _file(name, "application/octet-stream", _parts_of(codes), BackgroundTask(codes.close))

    @cached_property
    def _about(self) -> dict[str, Any]:
        counts = self._tables.ask("select method, status, count(*) as number from images group by all").to_pylist()
        values = ", ".join(f"count({quoted(name)}) as {quoted(name)}" for name in self._tables.columns)
        (filled,) = self._tables.ask(f"select {values} from images").to_pylist()
        by_method: dict[str, dict[str, int]] = {name: {} for name in self._methods}
        for one in counts:
            by_method.setdefault(one["method"], {})[one["status"]] = one["number"]
        subjects = {one.method: one.subject is not None for one in self._archive.runs}
        edits = set(self._archive.edits)
        size = self._archive.geometry.num_ws * self._archive.geometry.w_dim
        numbers = {name: size * sum(counted.values()) for name, counted in by_method.items()}
        kinds = {
            name: "edit" if name in edits else "refinement" if subjects[name] else "inversion" for name in subjects
        }
        return {
            "url": self._archive.url,
            "generator": self._archive.generator["name"],
            "methods": [
                {
                    "name": name,
                    "kind": kinds[name],
                    "counts": by_method[name],
                    "quick_spaces": [space for space, most in _QUICK_VALUES.items() if numbers[name] <= most],
                }
                for name in self._methods
            ],
            "columns": [
                {"name": one.name, "kind": one.kind, "worst": one.worst}
                for one in self._tables.columns.values()
                if filled[one.name]
            ],
            "directions": [
                {"name": one.name, "low": one.low, "high": one.high, "step": one.step} for one in self._live.directions
            ]
            if self._live
            else None,
            "most_codes": most_codes(self._archive),
        }

    def _selection(self, request: Request) -> Selection:
        asked = {name: request.query_params.getlist(name) for name in request.query_params}
        return read_selection(
            asked, columns=self._tables.columns, methods=self._methods, columns_of=self._tables.columns_of
        )

    def _values(self, request: Request) -> list[str]:
        return [name for name in dict.fromkeys(request.query_params.getlist("value")) if name in self._tables.columns]

    def _compared(self, request: Request) -> list[str]:
        wanted = dict.fromkeys(request.query_params.getlist("with"))
        return [name for name in wanted if name in self._desks][:_MOST_METHODS]

    def _index(self, places: Sequence[int] | np.ndarray, image_id: str) -> int | None:
        """Where an image stands; None where it is not in the selection."""
        found = self._tables.ask(f"select place from images where image_id = {literal(image_id)}").column("place")
        at = np.flatnonzero(np.isin(places, found.to_numpy()))
        return int(at[0]) if len(at) else None


def _shown(row: dict[str, Any], values: Sequence[str]) -> dict[str, Any]:
    """What the page knows of a row; `version` and `original` change when its pictures do."""
    return {
        "image": row["image_id"],
        "method": row["method"],
        "status": row["status"],
        "reason": row["reason"],
        "version": f"{row['run_id']}/{row['row']}",
        "original": row["digest"],
        "values": {name: finite(row[name]) for name in values},
    }


def _json(content: Any) -> Response:
    text = json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return Response(
        text.encode("utf-8", "replace"), media_type="application/json", headers={"Cache-Control": "no-store"}
    )


def _file(name: str, kind: str, parts: Any, afterwards: BackgroundTask | None = None) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return StreamingResponse(parts, headers=headers, media_type=kind, background=afterwards)


def _parts_of(file: IO[bytes]) -> Iterator[bytes]:
    while part := file.read(_CHUNK):
        yield part


def _text(request: Request, name: str) -> str:
    value = request.query_params.get(name, "")
    if not value or "\0" in value:
        raise QueryError(f"{name} is wanted")
    return value


def _number(request: Request, name: str, otherwise: int) -> int:
    value = request.query_params.get(name, str(otherwise))
    if not value.isascii() or not value.isdecimal() or len(value) > 12:
        raise QueryError(f"{name} is {value}: a whole number from 0 on is wanted")
    return int(value)


def _within(text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        raise QueryError(f"the strength {text} is no number") from None
    if not (math.isfinite(value) and low <= value <= high):
        raise QueryError(f"the strength {text} is outside of {low:g} to {high:g}")
    return value
