"""What lies under `reports/` of an archive, as its index lists it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from urllib.parse import quote

from lsap_archive import (
    ArchiveMismatchError,
    ArchiveNotFoundError,
    CorruptArchiveError,
    Store,
    decode_document,
    report_key,
)

INDEX = "index.html"
LINK = ".link.json"
"""Ends the names of documents that lead to a page elsewhere: its title, when it was made, and its URL."""
ABOUT = {
    "invert": "Inversions by every method beside the originals, compared on the same images",
    "refine": "What the second stage brought back, beside the inversions that it started from",
    "edit": "Inversions and their edits, with the strength of each",
    "evaluate": "Everything that was measured of inversions, refinements and edits",
    "evaluate_synthetic": "How far encoders' codes of synthetic images lie from the true ones",
    "reproduce": "The paper's tables and figures on these images",
    "table3": "Encoders over lambda and over seeds, the paper's Table 3",
    "editability": "Whether SNCD predicts how well codes can be edited",
    "inheritance": "Whether refined images can be edited as well as the codes alone",
}
"""What each report is for, by the stem of its files, in the order in which they are listed; others follow by name."""
HEAD_BYTES = 65_536
"""Of a page, in which its title and date stand."""


@dataclass(frozen=True)
class ListedReport:
    """A report of the index.

    Attributes:
        name: of its file, or where it lies elsewhere.
        title: its headline.
        created: UTC time, ISO 8601, or "" where it tells none.
        about: what it is for, or "".
        href: where it lies, from the index; None where no browser gets there.
        others: files of the same stem beside it, such as its tables as Markdown.
    """

    name: str
    title: str
    created: str
    about: str
    href: str | None
    others: tuple[str, ...] = ()


def listed_reports(store: Store) -> tuple[ListedReport, ...]:
    """Pages, texts that have no page, and what lies elsewhere; in the order of ABOUT."""
    prefix = report_key("")
    names = [key.removeprefix(prefix) for key in store.keys(prefix.rstrip("/"))]
    pages = {name.removesuffix(".html"): name for name in names if name.endswith(".html") and name != INDEX}
    texts = {name.removesuffix(".md"): name for name in names if name.endswith(".md")}
    links = {name.removesuffix(LINK): name for name in names if name.endswith(LINK)}
    order = list(ABOUT)
    stems = sorted({**texts, **links, **pages}, key=lambda one: (order.index(one) if one in ABOUT else len(order), one))
    found = []
    for stem in stems:
        if stem in links:
            found.append(_elsewhere(store, stem, links[stem]))
        else:
            name = pages.get(stem) or texts[stem]
            suffixes = (".md", ".png", ".parquet")
            others = tuple(f"{stem}{suffix}" for suffix in suffixes if f"{stem}{suffix}" in names)
            found.append(_beside(store, stem, name, tuple(one for one in others if one != name)))
    return tuple(one for one in found if one is not None)


def _beside(store: Store, stem: str, name: str, others: tuple[str, ...]) -> ListedReport | None:
    """A page or text under `reports/`; None where it has just been taken away, or has a name that no archive gives."""
    try:
        head = _Head.of(store.get(report_key(name), 0, HEAD_BYTES)) if name.endswith(".html") else _Head()
    except (ArchiveNotFoundError, ArchiveMismatchError):
        return None
    title = head.title or stem.replace("_", " ").capitalize()
    return ListedReport(name, title, head.created, ABOUT.get(stem, ""), quoted(name), others)


def _elsewhere(store: Store, stem: str, name: str) -> ListedReport | None:
    """A page that a document leads to; None where the document has been taken away, or is none of ours."""
    try:
        told = decode_document(store.get(report_key(name)), store.join(report_key(name)))
    except (ArchiveNotFoundError, ArchiveMismatchError, CorruptArchiveError):
        return None
    title, created, url = (told.get(key) for key in ("title", "created", "url"))
    if not (isinstance(title, str) and isinstance(created, str) and isinstance(url, str)):
        return None
    return ListedReport(url, title, created, ABOUT.get(stem, ""), _href(url, store.join(report_key(INDEX))))


def _href(url: str, index: str) -> str | None:
    """From the index to a page elsewhere: relative where both lie in folders, so that they may be moved together."""
    if url.startswith(("http://", "https://")):
        return quote(url, safe=":/?#[]@!$&'()*+,;=%~", errors="replace")
    if not (os.path.isabs(url) and os.path.isabs(index)):
        return None
    return quoted(os.path.relpath(url, os.path.dirname(index)))


def quoted(path: str) -> str:
    """A relative path as a link has it; one that could be taken for a scheme begins with its folder."""
    return quote(f"./{path}", errors="surrogatepass")


class _Head(HTMLParser):
    """Title and date of a page of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.title, self.created = "", ""
        self._is_in_title = False

    @classmethod
    def of(cls, page: bytes) -> _Head:
        """Of the beginning of a page."""
        head = cls()
        head.feed(page.decode(errors="replace"))
        return head

    def handle_starttag(self, tag: str, attributes: Sequence[tuple[str, str | None]]) -> None:
        """Note where the title begins, and the first date."""
        self._is_in_title = tag == "title" and not self.title
        if tag == "time" and not self.created:
            self.created = dict(attributes).get("datetime") or ""

    def handle_endtag(self, tag: str) -> None:
        """Note where the title ends."""
        self._is_in_title = False

    def handle_data(self, text: str) -> None:
        """Gather the title."""
        if self._is_in_title:
            self.title += text
