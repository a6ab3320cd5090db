"""Names that others have chosen stay text, wherever they are shown: pages, Markdown that Prefect renders, terminals.

The two pages have hostile names of their own beside their tests (tests/tasks/reports); a run over files with such names
is `tests/flows/test_bad_images.py`.
"""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from PIL import Image

from flows.commands.cli import main
from flows.commands.markdown_tables import RULE
from flows.commands.output import OneLine, lines_of, print_result
from flows.edit import EditReport
from flows.running.artifacts import _link
from lsap_archive.upkeep.repair_report import RepairedRun, RepairReport
from tasks.errors import BadImageError, SourceError
from tasks.reports.paper.page import tables_markdown
from tasks.reports.statistics import Number
from tasks.reports.tables import Cell, Column, Table, TableRow
from tasks.sources.source import open_source
from tasks.visible_text import in_markdown, visible

NAMES = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<IFRAME SRC=//example.org>",
    "[click](javascript:alert(1))",
    "![see](http://example.org/seen.png)",
    "[a]: javascript:alert(1)",
    "<javascript:alert(1)>",
    "`<b>`",
    "``` \n<script>alert(1)</script>\n```",
    "a | b | <i>c</i>",
    "a \\| b \\<u>",
    "line\n\n<script>alert(1)</script>\n\n# heading",
    "\x1b]0;title\x07\x1b[31mred\x1b[2J",
    "\u202egnp.exe",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "lone \udcff surrogate",
)
TAGS = {"p", "h1", "h2", "ul", "li", "strong", "em", "table", "thead", "tbody", "tr", "th", "td"}


class Reader(HTMLParser):
    """Tags, targets and the text of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: set[str] = set()
        self.targets: list[str] = []
        self.text = ""
        self.num_cells = 0
        self.handlers: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.num_cells += tag in ("td", "th")
        self.targets += [str(value) for name, value in attributes if name in ("href", "src")]
        self.handlers += [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def rendered(markdown: str) -> Reader:
    """What a browser gets of it from a renderer that hands HTML through."""
    return Reader(MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown))


def is_plain(page: Reader) -> bool:
    """No element beyond those of text and tables, and nothing that leads or reacts."""
    return page.tags <= TAGS and not page.targets and not page.handlers


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_markdown_is_text(name: str) -> None:
    table = f"| {in_markdown(name)} | next |\n| --- | --- |\n| {in_markdown(name)} | next |"
    page = rendered(f"# {in_markdown(name)}\n\n**{in_markdown(name)}**\n\n- {in_markdown(name)}\n\n{table}\n")
    assert is_plain(page)
    assert page.num_cells == 4 and page.text.count("next") == 2


def test_without_it_most_of_these_names_would_be_more() -> None:
    assert sum(not is_plain(rendered(f"# {name}\n")) for name in NAMES) >= 8


@pytest.mark.parametrize("name", NAMES)
def test_tables_that_flows_write_hold_names_as_text(name: str) -> None:
    number = Number(0.5, 0.1, 4, 0, "", name, ("evaluation",))
    column = Column("mse", name, "", "lower", 3, name)
    table = Table("table1", "Table 1", name, (column,), (TableRow(name, name, (Cell(number, name),)),), name, (name,))
    edited = EditReport(
        archive=name,
        report=name,
        strengths={name: 1.0},
        digests={},
        refused={name: name},
        edited=0,
        by_status={},
        by_reason={},
        seconds=1.0,
    )
    for written in (tables_markdown(name, [table], [], [name]), edited.table):
        page = rendered(written)
        assert is_plain(page), written


@pytest.mark.parametrize("name", NAMES)
def test_a_link_of_an_artifact_goes_where_it_says_or_nowhere(name: str) -> None:
    for url in (f"s3://bucket/{name}", f"http://example.org/{name}", name):
        page = rendered(f"| what | where |\n| --- | --- |\n| archive | {_link(url)} |\n")
        assert page.tags <= TAGS | {"a", "code"} and page.num_cells == 4 and not page.handlers
        assert all(target.startswith("http://example.org/") for target in page.targets)


# --- terminals and logs ------------------------------------------------------------------------------------

COMMANDS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
FILES = ("\x1b]0;title\x07.png", "\x1b[2J\x1b[31mred.png", "two\nlines: ok.png", "\u202egnp.exe.png", "c1\x9b31m.png")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures and others under names that write to a terminal what they like."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, name in enumerate(FILES):
        (folder / name).write_bytes(b"<svg>" if index % 2 else png())
    (folder / "notes.\x1b[2Jtxt").write_bytes(b"")
    return folder


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG")
    return file.getvalue()


def test_a_terminal_is_not_commanded_by_names(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "points.json").write_text("{}")
    command = ["image", "align", str(photos), "--out", str(tmp_path / "faces")]
    assert main([*command, "--landmarks", str(tmp_path / "points.json")]) == 1
    shown = capsys.readouterr()
    assert not COMMANDS.search(shown.out + shown.err)
    assert len(shown.out.splitlines()) == 1 + len(FILES) and "\\x1b]0;title\\x07.png" in shown.out
    assert main(["generator", "describe", str(tmp_path / "\x1b[2Jno.pt")]) == 2
    assert not COMMANDS.search(capsys.readouterr().err)


def test_what_is_logged_of_a_source_is_one_visible_line(photos: Path) -> None:
    with open_source(str(photos)) as source:
        items = list(source.items())
        told = [str(source.describe())]
        for item in items:
            try:
                told.append(repr(len(source.read(item))))
            except BadImageError as problem:
                told.append(str(problem))
    assert not any(COMMANDS.search(line) or "\n" in line for line in told)
    assert "1 \\x1b[2jtxt" in told[0].lower() or "\\x1b[2jtxt" in told[0].lower()


@pytest.mark.parametrize("name", NAMES)
def test_results_for_people_have_a_line_of_their_own_for_each_name(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Keys as well as values, however deep, and in lists."""
    document = {name: name, "inner": {name: {name: [name, name]}}, "rows": [{name: name, "problem": None}]}
    print_result(document, False, lines_of(document))
    told = capsys.readouterr().out
    assert not COMMANDS.search(told)
    assert len(told.splitlines()) == 8
    print_result(document, True, [])
    assert json.loads(capsys.readouterr().out) == document


@pytest.mark.parametrize("name", NAMES)
def test_reports_for_people_have_a_line_of_their_own_for_each_name(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edited = EditReport(name, name, {name: 1.0}, {}, {name: name}, 0, {name: 1}, {name: 2}, 1.0)
    repaired = RepairReport(name, False, {name: RepairedRun(flow="edit")}, [name], [name], [name], [name], [name])
    for report in (edited, repaired):
        print_result({}, False, report.lines())
        told = capsys.readouterr().out
        assert not COMMANDS.search(told)
        assert len(told.splitlines()) == len([line for line in report.lines() if not RULE.fullmatch(line)])


@pytest.mark.parametrize("name", NAMES)
def test_what_libraries_log_is_one_visible_line_with_no_credential(name: str) -> None:
    try:
        raise ValueError(name)
    except ValueError:
        failed = sys.exc_info()
    message = "Encountered exception: %s https://host/a.png?auth_key=17-hunter2"
    record = logging.LogRecord("prefect.flow_runs", logging.ERROR, "x.py", 1, message, (name,), failed)
    told = OneLine().format(record)
    assert not COMMANDS.search(told) and "\n" not in told
    assert told.startswith("ERROR prefect.flow_runs: Encountered") and "hunter2" not in told


@pytest.mark.parametrize("name", NAMES)
def test_errors_of_tasks_say_names_in_one_visible_line(name: str) -> None:
    for error in (SourceError(f"{name} is no source"), BadImageError("corrupt", f"{name} is no image")):
        assert not COMMANDS.search(str(error)) and "\n" not in str(error)
        str(error).encode()
    assert visible(visible(name)) == visible(name)


# --- paths --------------------------------------------------------------------------------------------------


def everything_below(folder: Path) -> Iterator[str]:
    return (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
