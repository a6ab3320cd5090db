"""What lies in a folder, entry by entry in the order of whole names, and what tells one content from the next."""

import datetime
import itertools
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem

from tasks.errors import SourceError
from tasks.sources.names import file_name


class Entry(NamedTuple):
    """A file or folder: its name below what was listed, its path, and what the listing tells of its content.

    A name that is no UTF-8 is decoded as `names.file_name` does; its path is what the file system gave.
    `kind` is "directory", "file" or "other": a pipe, which would block. `version` is as in a SourceItem.
    """

    name: str
    path: str
    kind: str
    version: str | None = None


def list_folder(fs: Any, folder: str) -> Iterator[Entry]:
    """Files and folders directly in a folder, ordered as their names with "/" added to folders."""
    if isinstance(fs, LocalFileSystem):
        return _in_order(_local_entries(folder))
    if pages := _pages_of(fs):
        return _list_pages(pages, fs, folder, delimiter="/")
    listed = fs.ls(folder, detail=True)
    entries = (_listed_entry(info["name"].rstrip("/"), info) for info in listed)
    return _in_order(entry for entry in entries if entry.path != folder)  # a folder may hold an object for itself


def list_below(fs: Any, folder: str) -> Iterator[Entry] | None:
    """Every file below a folder in the order of its path, a page at a time; None where no store can do that."""
    pages = _pages_of(fs)
    return _list_pages(pages, fs, folder, delimiter="") if pages else None


def version_of(fs: Any, path: str) -> str | None:
    """The version of one file; see `SourceItem.version`."""
    return _local_version(os.stat(path)) if isinstance(fs, LocalFileSystem) else _listed_version(fs.info(path))


def _in_order(entries: Iterator[Entry]) -> Iterator[Entry]:
    return iter(sorted(entries, key=lambda entry: entry.name + "/" * (entry.kind == "directory")))


def _local_entries(folder: str) -> Iterator[Entry]:
    """Entries of a folder on disk; of several whose names are decoded alike all but one get "#2", "#3", ..."""
    entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
    names = {entry.name for entry in entries}
    for entry in entries:
        name = decoded = file_name(entry.name).text
        if name != entry.name:
            numbers = itertools.count(2)
            while name in names:
                name = f"{decoded}#{next(numbers)}"
            names.add(name)
        yield _local_entry(entry, name)


def _local_entry(entry: os.DirEntry[str], name: str) -> Entry:
    try:
        found = entry.stat()
    except OSError:  # a link that leads nowhere, or in a circle: a file that cannot be read
        return Entry(name, entry.path, "file")
    if stat.S_ISDIR(found.st_mode):
        return Entry(name, entry.path, "directory")
    return Entry(name, entry.path, "file" if stat.S_ISREG(found.st_mode) else "other", _local_version(found))


def _local_version(found: os.stat_result) -> str:
    """Size and times; the time of change shows also what was put in place with an older file's times."""
    return f"{found.st_size}-{found.st_mtime_ns}-{found.st_ctime_ns}"


def _listed_entry(path: str, info: Mapping[str, Any]) -> Entry:
    return Entry(path.rpartition("/")[2], path, info["type"], _listed_version(info))


def _listed_version(info: Mapping[str, Any]) -> str | None:
    """What a store keeps of each content: Google's generation, else the ETag, else (in memory) the time it was made."""
    for name in ("generation", "ETag", "etag", "created"):
        if found := info.get(name):
            told = found.timestamp() if isinstance(found, datetime.datetime) else str(found).strip('"')
            return f"{told}-{info.get('size')}"
    return None


# A page: keys and what the store tells of each, in order, with None for a folder, whose key ends in "/".
_Page = list[tuple[str, Mapping[str, Any] | None]]
_Pages = Callable[[Any, str, str, str], Iterator[_Page]]


def _pages_of(fs: Any) -> _Pages | None:
    """How a store is asked page by page; None where its client cannot, or where pages do not follow the names."""
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return next((_PAGES[protocol] for protocol in protocols if protocol in _PAGES), None)


def _list_pages(pages: _Pages, fs: Any, folder: str, *, delimiter: str) -> Iterator[Entry]:
    """Entries of a folder on a store that lists in the order of its keys, with one page in memory."""
    bucket, key, *_ = fs.split_path(folder)
    prefix = f"{key}/" if key else ""
    previous = ""
    for found, info in itertools.chain.from_iterable(pages(fs, bucket, prefix, delimiter)):
        if found < previous:
            raise SourceError(
                f"{folder} is listed out of order ({found!r} after {previous!r}), the order of the names was wanted: "
                "name its images in a manifest"
            )
        previous = found
        path = f"{bucket}/{found.rstrip('/')}"
        name = found.removeprefix(prefix).rstrip("/")
        if info is None and name:
            yield Entry(name, path, "directory")
        elif info is not None and not found.endswith("/"):  # with it: an empty object that stands for a folder
            yield Entry(name, path, "file", _listed_version(info))


def _s3_pages(fs: Any, bucket: str, prefix: str, delimiter: str) -> Iterator[_Page]:
    asked = {"Bucket": bucket, "Prefix": prefix, "Delimiter": delimiter}
    more: dict[str, str] = {}
    while True:
        answer = fs.call_s3("list_objects_v2", **asked, **more)
        page: _Page = [(common["Prefix"], None) for common in answer.get("CommonPrefixes", ())]
        page += [(found["Key"], {**found, "size": found["Size"]}) for found in answer.get("Contents", ())]
        yield sorted(page, key=lambda entry: entry[0])
        if not answer.get("IsTruncated"):
            return
        more = {"ContinuationToken": answer["NextContinuationToken"]}


def _gcs_pages(fs: Any, bucket: str, prefix: str, delimiter: str) -> Iterator[_Page]:
    asked = {"prefix": prefix, "delimiter": delimiter, "maxResults": 1000}
    asked = {name: value for name, value in asked.items() if value}
    more: dict[str, str] = {}
    while True:
        answer = fs.call("GET", "b/{}/o", bucket, **asked, **more, json_out=True)
        page: _Page = [(common, None) for common in answer.get("prefixes", ())]
        page += [(found["name"], found) for found in answer.get("items", ())]
        yield sorted(page, key=lambda entry: entry[0])
        if not answer.get("nextPageToken"):
            return
        more = {"pageToken": answer["nextPageToken"]}


_PAGES: Mapping[str, _Pages] = {"s3": _s3_pages, "gs": _gcs_pages}
