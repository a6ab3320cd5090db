"""`reports/index.html`, made from what lies beside it, so that it can be made again at any time, by anybody."""

from __future__ import annotations

from dataclasses import dataclass

from lsap_archive import ArchiveNotFoundError, ArchiveWriter, Store, encode_document, report_key
from tasks.reports.index.listing import INDEX, LINK, ListedReport, listed_reports, quoted
from tasks.reports.page import data_uri, page_template

FIRST_PICTURE = "edit.png"


@dataclass(frozen=True)
class Index:
    """What the index shows.

    Attributes:
        title: its headline.
        created: date of the newest report.
        reports: in order.
        picture: the first picture as a data: URI, or None.
    """

    title: str
    created: str
    reports: tuple[ListedReport, ...]
    picture: str | None


def put_page(writer: ArchiveWriter, name: str, page: str) -> str:
    """Put a page into the archive under `reports/`, and see that the index leads to it.

    Args:
        writer: of the archive.
        name: of its file.
        page: HTML.

    Returns:
        URL of the page.
    """
    url = writer.put_report(name, page.encode())
    write_index(writer)
    return url


def put_link(writer: ArchiveWriter, stem: str, *, title: str, created: str, url: str) -> None:
    """Have the index lead to a page that lies elsewhere.

    Args:
        writer: of the archive.
        stem: what kind of report it is.
        title: its headline.
        created: UTC time, ISO 8601.
        url: where it lies.
    """
    name = f"{stem}{LINK}"
    told = {"title": title, "created": created, "url": url}
    writer.put_report(name, encode_document(told, report_key(name)))
    write_index(writer)


def write_index(writer: ArchiveWriter) -> None:
    """Make the index anew from what lies beside it.

    Whoever writes it looks again afterwards, until what it shows is what is there: so of commands that end at once the
    last one to write has seen the reports of all.
    """
    page = _page(writer.store)
    while True:
        if not _is_there(writer.store, page):
            writer.put_report(INDEX, page)
        before, page = page, _page(writer.store)
        if page == before:
            return


def _page(store: Store) -> bytes:
    reports = listed_reports(store)
    try:
        picture = data_uri(store.get(report_key(FIRST_PICTURE)))
    except ArchiveNotFoundError:
        picture = None
    created = max((report.created for report in reports), default="")
    data = Index(f"Reports of {store.url.rpartition('/')[2]}", created, reports, picture)
    return page_template("index", quoted=quoted).render(data=data, tiles=()).encode()


def _is_there(store: Store, page: bytes) -> bool:
    try:
        return store.get(report_key(INDEX)) == page
    except ArchiveNotFoundError:
        return False
