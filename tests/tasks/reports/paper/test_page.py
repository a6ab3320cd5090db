"""The page of a reproduction: every number leads to its query, nothing in a name can turn into markup."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tasks.reports.paper.claims import Claim
from tasks.reports.paper.figure5 import EditedImage
from tasks.reports.paper.page import ContactSheets, Reproduction, remarks, render_reproduction
from tasks.reports.statistics import Number
from tasks.reports.tables import Cell, Column, Table, TableRow

HOSTILE = "../<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\n{{ 7 * 7 }}\u202e &lt;"
QUERY = "select avg(value) as mean\nfrom measurements\nwhere method = 'e4e'"


def number(mean: float, **changes) -> Number:
    return replace(Number(mean, 0.01, 16, 0, "", QUERY, ("evaluation",)), **changes)


def table(**changes) -> Table:
    columns = (Column("mse", "MSE"), Column("lec/slant", "slant", "", "lower", 3, "LEC"))
    rows = (
        TableRow("e4e", "e4e", (Cell(number(0.5), 0.0475), Cell(number(7.0)))),
        TableRow("lsap_e", "LSAP_E", (Cell(number(0.25, skipped=3), "×"), Cell(number(9.0)))),
        TableRow("sam_e4e", HOSTILE, (Cell(paper="–"), Cell())),
    )
    known = Table("table1", "Table 1", "What it shows.", columns, rows, "paper", ("A note.",))
    return replace(known, **changes)


def pixels(shade: int) -> np.ndarray:
    return np.full((32, 32, 1), shade, np.uint8)


def page(**changes) -> Reproduction:
    made = {"e4e": {"inversion": pixels(10), "slant": pixels(20)}, HOSTILE: {"inversion": pixels(30)}}
    known = Reproduction(
        title="The paper's tables on digits",
        created="2026-01-02T03:04:05+00:00",
        domain="digits",
        about="digits",
        source="digits:test[:16]",
        num_images=16,
        archives={"archive": "s3://bucket/it's", "archive of table 3": "/other"},
        paper_problem="the paper has no such domain",
        tables=(table(), table(name="table3", title="Table 3")),
        claims=(Claim("SNCD", "LSAP_E is lower", "refuted", number(0.2), number(0.1), number(0.1)),),
        figures={},
        sheets=ContactSheets(
            (EditedImage(HOSTILE, pixels(0), made),), ("inversion", "slant"), {HOSTILE: "figure5/00.png"}
        ),
        networks={"LPIPS": "net 12ab"},
        provenance={"generator": "StyleGAN2"},
        config_yaml="domain: digits\n",
        files={"tables": "report_tables.parquet"},
        seconds=61.0,
        table_archives={"table3": "archive of table 3"},
    )
    return replace(known, **changes)


class Reader(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def read() -> Reader:
    return Reader(render_reproduction(page()))


def test_every_number_leads_to_the_query_that_gives_it(read: Reader) -> None:
    links = [attributes["href"] for tag, attributes in read.tags if tag == "a" and attributes.get("class") == "trace"]
    anchors = {attributes["id"] for _, attributes in read.tags if "id" in attributes}
    assert len(links) == 2 * 4 and len(set(links)) == 8
    assert {str(link)[1:] for link in links} <= anchors
    assert read.text.count(QUERY) == 8
    assert "Table 1: 4 numbers" in read.text


def test_duckdb_gets_the_archive_of_the_table_however_it_is_named(read: Reader) -> None:
    told = read.text.replace("'\"'\"'", "'")
    assert "set variable archive = 's3://bucket/it''s'; " in told and "set variable archive = '/other'; " in told
    assert told.count("create view measurements as from query(getvariable('all_measurements')); <query>") == 2


def test_nothing_in_a_name_becomes_markup_and_nothing_is_loaded(read: Reader) -> None:
    assert not {tag for tag, _ in read.tags} & {"script", "iframe", "link", "object"}
    assert all(not name.startswith("on") for _, attributes in read.tags for name in attributes)
    sources = [str(attributes["src"]) for tag, attributes in read.tags if tag == "img"]
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "{{ 7 * 7 }}" in read.text and "\u202e" not in read.text
    targets = [str(attributes["href"]) for tag, attributes in read.tags if tag == "a"]
    assert all(target.startswith("#") or target == "figure5/00.png" for target in targets)


def test_published_numbers_and_marks_stand_beside_the_measured_ones(read: Reader) -> None:
    assert "0.0475" in read.text
    titles = {attributes.get("title") for tag, attributes in read.tags if tag == "td"}
    assert {"not measured in the paper", "judged unnatural in the paper"} <= titles
    hovered = {attributes.get("title") for tag, attributes in read.tags if tag == "a"}
    assert "standard deviation 0.0100 over 16 images (3 without a value)" in hovered
    assert "do not stand beside the measured ones: the paper has no such domain" in read.text


def test_the_contact_sheet_shows_original_inversion_and_edits_in_their_places(read: Reader) -> None:
    shades = []
    for tag, attributes in read.tags:
        if tag == "img":
            data = base64.b64decode(str(attributes["src"]).split(",")[1])
            shades.append(np.asarray(Image.open(io.BytesIO(data)))[0, 0])
    assert shades == [0, 10, 20, 30]
    assert sum(attributes.get("class") == "missing" for _, attributes in read.tags) == 1


def test_a_page_of_one_table_has_no_empty_sections() -> None:
    html = render_reproduction(page(claims=(), sheets=None, tables=(table(paper=None),), paper_problem=None))
    assert 'id="claims"' not in html and 'id="figure5"' not in html and 'class="notice"' not in html
    assert not re.search(r'href="#(claims|figure5)"', html)


def test_remarks_say_on_what_and_why_the_paper_is_not_there() -> None:
    assert remarks(page())[0] == "Domain digits: 16 images of digits:test[:16]. Means over images."
    assert "the paper has no such domain" in remarks(page())[1]
    assert len(remarks(page(paper_problem=None))) == 1
