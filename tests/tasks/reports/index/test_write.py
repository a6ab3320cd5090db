"""The index leads to what lies beside it, whoever has put it there and whenever."""

from __future__ import annotations

import html
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lsap_archive import ArchiveWriter, Geometry
from tasks.reports.index.write import put_link, put_page, write_index
from tests.security.test_hostile_names import NAMES, Reader


def page(title: str, created: str) -> str:
    return f'<!doctype html><title>{title}</title><p><time datetime="{created}">then</time><time datetime="other"></p>'


def new_writer(url: str) -> ArchiveWriter:
    geometry = Geometry(num_ws=2, w_dim=3, noise_sides=())
    return ArchiveWriter.open(url, generator_digest="9f", generator_name="tiny", geometry=geometry)


@pytest.fixture
def writer() -> ArchiveWriter:
    return new_writer(f"memory://index-{uuid.uuid4().hex}")


def index_of(writer: ArchiveWriter) -> Reader:
    return Reader(writer.store.get("reports/index.html").decode())


def test_every_report_has_a_link_with_title_purpose_and_date(writer: ArchiveWriter) -> None:
    put_page(writer, "edit.html", page("Edits of &lt;b&gt;", "2026-02-03T04:05:06+00:00"))
    writer.put_report("edit.md", b"| a |")
    writer.put_report("table3.md", b"| b |")
    put_page(writer, "invert.html", page("Inversion of photos", "2026-01-02T03:04:05+00:00"))
    put_page(writer, "own/of mine.html", "no title")
    found = index_of(writer)
    assert found.targets == ["./invert.html", "./edit.html", "./edit.md", "./table3.md", "./own/of%20mine.html"]
    told = " ".join(found.text.split())
    assert "Edits of <b> Inversions and their edits, with the strength of each.edit.html, 2026-02-03 04:05 UTC" in told
    assert "The newest report is of 2026-02-03 04:05 UTC" in told
    writer.store.delete("reports/edit.html")
    write_index(writer)
    assert "./edit.html" not in index_of(writer).targets


def test_a_page_elsewhere_is_led_to_and_no_other_scheme_is(tmp_path: Path) -> None:
    writer = new_writer(str(tmp_path / "archive"))
    put_link(writer, "reproduce", title="Tables", created="2026-01-02", url=str(tmp_path / "out" / "report.html"))
    put_link(writer, "there", title="There", created="2026-01-02", url="https://example.org/a b")
    put_link(writer, "bad", title="<b>", created="2026-01-02", url="javascript:alert(1)")
    found = index_of(writer)
    assert found.targets == ["./../../out/report.html", "https://example.org/a%20b"]
    assert "<b>" in found.text and "javascript:alert(1)" in found.text


def test_names_and_titles_of_pages_are_text(tmp_path: Path) -> None:
    """Those of files that others have put there too; what no archive would name so is left out."""
    writer = new_writer(str(tmp_path / "archive"))
    folder = tmp_path / "archive" / "reports"
    folder.mkdir()
    names = [name for name in NAMES if "/" not in name]
    for number, name in enumerate(names):
        told = page(html.escape(name), name.replace('"', "")).encode("utf-8", "surrogateescape")
        (folder / f"{name}.html").write_bytes(told)
        (folder / f"{number}.html").write_bytes(told)
    write_index(writer)
    found = index_of(writer)
    assert not found.handlers and not {"script", "img", "iframe", "u", "i"} & found.tags
    assert all(target.startswith("./") for target in found.targets)
    assert len(names) < len(found.targets) < 2 * len(names)


@dataclass
class Disturbed:
    """A writer in whose archive another command puts a page, and its index, right before this one's index is put."""

    writer: ArchiveWriter
    has_disturbed: bool = False

    @property
    def store(self) -> Any:
        return self.writer.store

    def put_report(self, name: str, data: bytes) -> str:
        if name == "index.html" and not self.has_disturbed:
            self.has_disturbed = True
            put_page(self.writer, "refine.html", page("Refinement", "2026-01-02"))
        return self.writer.put_report(name, data)


def test_two_commands_that_end_at_once_lose_nothing(writer: ArchiveWriter) -> None:
    disturbed: Any = Disturbed(writer)
    put_page(disturbed, "edit.html", page("Edits", "2026-01-02"))
    assert disturbed.has_disturbed and index_of(writer).targets == ["./refine.html", "./edit.html"]


def test_an_index_that_shows_what_is_there_is_not_put_again(writer: ArchiveWriter) -> None:
    put_page(writer, "edit.html", page("Edits", "2026-01-02"))

    class Refusing(Disturbed):
        def put_report(self, name: str, data: bytes) -> str:
            raise AssertionError(f"{name} is put again")

    refusing: Any = Refusing(writer)
    write_index(refusing)
