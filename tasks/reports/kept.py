"""Reports that stay while they show what a new one would: a command that found nothing to do writes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lsap_archive import (
    ArchiveNotFoundError,
    ArchiveWriter,
    CorruptArchiveError,
    Store,
    decode_document,
    encode_document,
    report_key,
)
from tasks.reports.index.write import put_page


@dataclass(frozen=True)
class WrittenReport:
    """Where a report lies.

    Attributes:
        url: of the HTML page.
        picture: URL of its first picture, a PNG file, or None where there is nothing to show.
    """

    url: str
    picture: str | None


def digest_of_shown(shown: Sequence[Any]) -> str:
    """Of all that decides what a report shows."""
    return hashlib.sha256(repr(tuple(shown)).encode("utf-8", "surrogatepass")).hexdigest()


def kept_report(url: str, stem: str, digest: str) -> WrittenReport | None:
    """The report of this name that the archive has, if it shows what has this digest."""
    store, key = Store.from_url(url), report_key(f"{stem}.json")
    try:
        kept = decode_document(store.get(key), store.join(key))
    except (ArchiveNotFoundError, CorruptArchiveError):  # a report is written anew by any command
        return None
    if kept.get("shown") != digest or not store.exists(report_key(f"{stem}.html")):
        return None
    picture = store.join(report_key(f"{stem}.png")) if kept.get("has_picture") else None
    return WrittenReport(store.join(report_key(f"{stem}.html")), picture)


def keep_report(
    writer: ArchiveWriter, stem: str, digest: str, *, page: str, markdown: str, picture: bytes | None
) -> WrittenReport:
    """Put a report into the archive: its page, the same as Markdown, its first picture, and what it shows.

    Args:
        writer: of the archive.
        stem: name of its files.
        digest: of what it shows.
        page: HTML.
        markdown: its tables.
        picture: a PNG file, or None where there is nothing to show.
    """
    writer.put_report(f"{stem}.md", markdown.encode())
    put = None if picture is None else writer.put_report(f"{stem}.png", picture)
    url = put_page(writer, f"{stem}.html", page)
    kept = {"shown": digest, "has_picture": put is not None}
    writer.put_report(f"{stem}.json", encode_document(kept, report_key(f"{stem}.json")))
    return WrittenReport(url, put)
