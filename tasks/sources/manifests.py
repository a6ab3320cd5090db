"""A manifest as a source: a .csv, .jsonl or .parquet table of addresses."""

import codecs
import csv
import io
import posixpath
import re
from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from lsap_archive import credential_in, open_file_system, scheme_of
from tasks.errors import BadImageError, SourceError
from tasks.sources.items import LeftOut, SourceItem, check_name, without_credential
from tasks.sources.names import TABLE_GUESS, decode_name
from tasks.sources.storage import StoredFiles

URI_COLUMNS = ("uri", "file_name")
SCHEMES = ("file", "memory", "s3", "gs", "az", "http", "https")  # what a row may name beside the manifest's own


class Manifest:
    """A table of addresses, read whole so that its ids can be ordered and compared."""

    kind = "manifest"

    def __init__(self, files: StoredFiles, path: str) -> None:
        self._files = files
        self._folder = posixpath.dirname(path)
        rows = MANIFESTS[posixpath.splitext(path)[1].lower()](files, path)
        self._num_guessed = 0
        self._rows = [(self._as_text(image_id), self._as_text(uri)) for image_id, uri in rows]

    def _as_text(self, cell: Any) -> Any:
        """A cell, decoded where it is bytes: columns of binary strings, and tables that are no UTF-8."""
        if not isinstance(cell, bytes):
            return cell
        text, is_guessed = decode_name(cell, TABLE_GUESS)
        self._num_guessed += is_guessed
        return text

    def items(self, left_out: LeftOut) -> Iterator[SourceItem]:
        left_out.num_guessed += self._num_guessed
        items = [without_credential(self._to_item(number, *row)) for number, row in enumerate(self._rows, start=1)]
        yield from sorted(items, key=lambda item: (item.image_id, item.uri))

    def _to_item(self, number: int, image_id: Any, uri: Any) -> SourceItem:
        given_id = None if image_id in (None, "") else str(image_id)
        problem: BadImageError | None
        if uri is None or str(uri).strip() == "":
            return SourceItem(given_id or f"row-{number:06d}", "", self._no_uri(f"row {number}"))
        written = str(uri)
        if self._is_address(written):
            problem = self._check_address(written)
            shown = self._files.secrets.hide(written) if credential_in(written) else written
            return SourceItem(given_id or shown, shown, problem)
        problem = check_name(written, "uri")
        below = f"{self._folder}/{written.removeprefix('./')}"
        return SourceItem(given_id or written, written if problem else self._files.uri(below), problem)

    def _no_uri(self, row: str) -> BadImageError:
        return BadImageError("no_uri", f"{row} of {self._files.shown} has no uri: add it or take it out")

    def _is_address(self, written: str) -> bool:
        return "://" in written or (written.startswith("/") and isinstance(self._files.fs, LocalFileSystem))

    def _is_own(self, uri: str) -> bool:
        own = self._files.fs.protocol
        if self._files.is_in_percents(uri):
            return True
        return (fsspec.core.split_protocol(uri)[0] or "file") in ((own,) if isinstance(own, str) else own)

    def _check_address(self, uri: str) -> BadImageError | None:
        is_local = uri.startswith(("/", "file://", "local://"))
        if ".." in re.split(r"[/\\]", uri) or ("::" in uri and not self._is_own(uri)):
            found, wanted = "climbs with `..` or chains file systems with `::`", "a plain address"
        elif "\0" in uri:
            found, wanted = "has a NUL character", "an address that a file can have"
        elif what := credential_in(uri):
            found, wanted = f"carries {what}", "an address without one (the storage's client has its own places for it)"
            uri = self._files.secrets.hide(uri)
        elif is_local and not isinstance(self._files.fs, LocalFileSystem):
            found, wanted = (
                "asks for a file of this machine, in a manifest from elsewhere",
                "an address over there",
            )
        elif not self._is_own(uri) and scheme_of(uri) not in SCHEMES:
            found, wanted = "is of a kind that no manifest may name", f"one of {', '.join(SCHEMES)}"
        else:
            return None
        return BadImageError(
            "unsafe_name", f"the uri {uri!r} {found}, {wanted} was wanted; it was not opened: rewrite the row"
        )

    def read(self, uri: str) -> bytes:
        if not uri:
            raise self._no_uri("this row")
        problem = self._check_address(uri)
        if problem is not None:
            raise problem
        if self._is_own(uri):
            return self._files.read(self._files.path(uri))
        with self._files.reading(uri):
            fs, path = open_file_system(uri)
        return StoredFiles(fs, self._files.shown, self._files.secrets, self._files.max_bytes).read(path)

    def close(self) -> None:
        pass


def _read_csv(files: StoredFiles, path: str) -> list[tuple[Any, Any]]:
    """Rows (image_id, uri) as written: no cell is taken for a number, so the id 0001 keeps its zeros.

    Cells come as bytes, for each to be decoded by itself; a table that says it is UTF-16 is decoded here.
    """
    with files.fs.open(path, "rb") as file:
        mark = file.read(3)
        is_utf_16 = mark.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        file.seek(3 if mark == codecs.BOM_UTF8 else 0)
        # Latin-1 keeps every byte, and what is UTF-8 has its commas, quotes and line ends at the same places.
        text = io.TextIOWrapper(file, encoding="utf-16" if is_utf_16 else "latin-1", newline="")
        try:
            table = csv.DictReader(text, strict=True)
            names = list(table.fieldnames or ())
            uri = _uri_column(
                files, names if is_utf_16 else [decode_name(_as_bytes(name), TABLE_GUESS).text for name in names]
            )
            rows = ((row.get("image_id"), row[uri]) for row in table)
            return list(rows) if is_utf_16 else [(_as_bytes(image_id), _as_bytes(place)) for image_id, place in rows]
        except (csv.Error, UnicodeError) as error:
            raise SourceError(f"{files.shown} is not a CSV table ({error}): export it again, with commas") from error


def _as_bytes(cell: str | None) -> Any:
    return cell if cell is None else cell.encode("latin-1")


def _read_parquet(files: StoredFiles, path: str) -> list[tuple[Any, Any]]:
    data = files.fs.cat_file(path)  # apart from parsing: a broken network is not a broken file
    try:
        table = pq.ParquetFile(io.BytesIO(data))
        names = table.schema_arrow.names
        uri = _uri_column(files, names)
        columns = table.read([name for name in ("image_id", uri) if name in names]).to_pydict()
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{files.shown} is not a complete Parquet file ({error}): copy it again") from error
    uris = columns[uri]
    return list(zip(columns.get("image_id", [None] * len(uris)), uris, strict=True))


def _read_jsonl(files: StoredFiles, path: str) -> list[tuple[Any, Any]]:
    """One object a line; other fields than those of addresses may hold anything, such as captions and boxes."""
    data = files.fs.cat_file(path)
    wanted = pa.schema([(name, pa.binary()) for name in ("image_id", *URI_COLUMNS)])  # bytes: decoded cell by cell
    parsing = pyarrow.json.ParseOptions(explicit_schema=wanted, unexpected_field_behavior="ignore")
    try:
        table = pyarrow.json.read_json(io.BytesIO(data), parse_options=parsing)
    except pa.ArrowException as error:
        raise SourceError(
            f"{files.shown} is no table of one JSON object a line with texts as addresses ({error}): export it again"
        ) from error
    names = [name for name in table.column_names if table[name].null_count < len(table)]
    uri = _uri_column(files, names)
    return list(zip(table["image_id"].to_pylist(), table[uri].to_pylist(), strict=True))


MANIFESTS = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
"""By suffix: how rows (image_id, uri) are read."""


def _uri_column(files: StoredFiles, names: list[str]) -> str:
    """`uri`, or `file_name` as the tables of an imagefolder call it."""
    found = next((name for name in URI_COLUMNS if name in names), None)
    if found is None:
        raise SourceError(
            f"the manifest {files.shown} has the columns {names}, `uri` and perhaps `image_id` were wanted, or in "
            "Parquet a column of images, bytes or {bytes, path}: add a header or rename the column"
        )
    if len(set(names)) < len(names):
        raise SourceError(f"the manifest {files.shown} has a column twice, {names}: rename one of them")
    return found
