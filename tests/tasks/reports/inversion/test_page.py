"""The report tells what the rows say, in numbers and in words, and nothing in them can turn into markup."""

import ast
import base64
import io
import math
import re
import shlex
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html.parser import HTMLParser

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image
from scipy.stats import ttest_rel

from lsap_archive import ROW_SCHEMA, ArchiveWriter, Geometry, PlannedRow, RunPlan, code_arrays
from tasks.reports.inversion.data import Choice, ContactCell, ContactRow, LossParts, MethodInfo, ReportData
from tasks.reports.inversion.differences import compare_pairs
from tasks.reports.inversion.page import SHOWN_FAILURES, render_report
from tasks.reports.inversion.summaries import summarize_rows
from tasks.reports.inversion.table import render_markdown_table

BASE = MethodInfo("stylegan2_w_plus", "StyleGAN2-W+", {"space": "w_plus", "num_steps": 5}, None)
LSAP = MethodInfo("lsap_o_w_plus", "LSAP_O-W+", {"space": "w_plus", "num_steps": 5, "sncd_weight": 0.5}, BASE.name)
CONTROL = MethodInfo("l2_w_plus", "W+ with L2", {"space": "w_plus", "mean_code_weight": 0.1}, BASE.name)
METHODS = (BASE, LSAP, CONTROL)
REFERENCES = {
    "floor": 0.08,
    "mean code": 0.081,
    "synthetic, psi = 0.5": 0.1,
    "synthetic, psi = 0.7": 0.12,
    "synthetic, psi = 1": 0.15,
}
METRICS = ("mse", "lpips", "lpips_judge", "identity_similarity", "sncd", "w_distance", "seconds", "final_loss")
HOSTILE = "../<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\n\r\t{{ 7 * 7 }}`$x$\x00\u202e\u2028 é &lt;"


def row(method: MethodInfo, image_id: str, **values) -> dict:
    known = {
        "run_id": "run",
        "row": 0,
        "image_id": image_id,
        "uri": f"file:///{image_id}",
        "digest": f"digest of {image_id}",
        "status": "ok",
        "method": method.name,
        "shard": 0,
        "attempt": "1",
    }
    return known | values


def table(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=ROW_SCHEMA)


def measured(method: MethodInfo, values: dict[str, list[float]], ids: list[str] | None = None) -> list[dict]:
    """One ok row per value; metrics that are not named are constant."""
    size = len(next(iter(values.values())))
    constant = dict.fromkeys(METRICS, 0.5)
    return [
        row(method, image_id, **constant) | {name: column[index] for name, column in values.items()}
        for index, image_id in enumerate(ids or [f"image {index}" for index in range(size)])
    ]


def png(shade: int, side: int = 32) -> bytes:
    file = io.BytesIO()
    Image.new("L", (side, side), shade).save(file, "png")
    return file.getvalue()


def plausible_rows(num_images: int = 24) -> list[dict]:
    stream = np.random.default_rng(7)
    means = ((0.022, 0.026, 0.20), (0.024, 0.029, 0.11), (0.023, 0.029, 0.13))
    rows = []
    for method, (mse, lpips, sncd) in zip(METHODS, means, strict=True):
        for index in range(num_images):
            rows.append(
                row(
                    method,
                    f"test/{index:04d}",
                    mse=mse * stream.uniform(0.7, 1.3),
                    lpips=lpips * stream.uniform(0.7, 1.3),
                    lpips_judge=lpips * stream.uniform(0.9, 1.7),
                    identity_similarity=stream.uniform(0.9, 1),
                    sncd=sncd + stream.normal(scale=0.01),
                    w_distance=stream.uniform(4, 6),
                    num_steps=5,
                    seconds=0.25,
                    final_loss=lpips * 2,
                )
            )
    return rows


def report_of(rows: pa.Table, methods: tuple[MethodInfo, ...] = METHODS, **changes) -> ReportData:
    data = ReportData(
        title="Digits",
        created="2026-01-02T03:04:05+00:00",
        archive_url="s3://bucket/digits",
        config_yaml="domain: digits\nmethods: [lsap_o_w_plus]\n",
        domain="digits",
        generator={"name": "g", "digest": "9f86", "size": (32, 32), "num_ws": 8, "w_dim": 64, "image_channels": 1},
        perceptual="features",
        judge="judge net",
        identity="features",
        methods=methods,
        rows=rows,
        references=REFERENCES,
        contact=(),
        choice=Choice("LSAP_O-W+", 24),
        losses={},
        summary={
            "wall_seconds": 75.0,
            "images_per_second": 0.96,
            "num_workers": 2,
            "device": "cpu",
            "commit": "abc1234",
            "versions": {"torch": "2.15"},
        },
        locations={"archive": "s3://bucket/digits", "manifest": "s3://bucket/digits/runs/run/_manifest.json"},
    )
    return replace(data, **changes)


class Page(HTMLParser):
    """Tags, attributes, text and tables of a page; refuses one whose tags do not nest."""

    VOID = frozenset({"meta", "img", "col", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.tables: list[list[list[str]]] = []
        self.bold: list[str] = []
        self._open: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self._open.append((tag, dict(attrs).get("class") or ""))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        opened, _ = self._open.pop()
        assert opened == tag, f"</{tag}> closes <{opened}>"

    def handle_data(self, data):
        tags = [tag for tag, _ in self._open]
        if "style" in tags:
            return
        self.text += data
        if "td" in tags or "th" in tags:
            self.tables[-1][-1][-1] += data
            if any("best" in classes for _, classes in self._open):
                self.bold.append(data.strip())

    @property
    def words(self) -> str:
        """The text with every run of white space as one space."""
        return " ".join(self.text.split())


@pytest.fixture(scope="module")
def data() -> ReportData:
    bad = {"status": "failed", "reason": "truncated", "message": "the file ends early: copy it again"}
    rows = plausible_rows()
    rows += [row(method, "broken.png", **bad) for method in METHODS]
    rows += [row(method, "twice.png", status="duplicate", duplicate_of="test/0000") for method in METHODS]
    cells = {method.name: ContactCell(png(90), png(10)) for method in (BASE, LSAP)}
    contact = (ContactRow("test/0000", png(100), cells), ContactRow("broken.png", png(0), {}))
    return report_of(table(rows), contact=contact)


@pytest.fixture(scope="module")
def page(data: ReportData) -> Page:
    return Page(render_report(data))


# --- means -------------------------------------------------------------------------------------------


def test_means_and_standard_errors_are_those_of_the_ok_rows(data: ReportData) -> None:
    rows = data.rows.to_pylist()
    for method, summary in zip(METHODS, summarize_rows(data.rows, METHODS), strict=True):
        ok = [one for one in rows if one["method"] == method.name and one["status"] == "ok"]
        assert (summary.method, summary.num_ok, summary.num_failed, summary.num_duplicate) == (method.name, 24, 1, 1)
        assert summary.num_steps == 5
        for metric in METRICS:
            values = np.array([one[metric] for one in ok], dtype=np.float64)
            estimate = getattr(summary, metric)
            assert estimate.mean == pytest.approx(values.mean(), rel=1e-12)
            assert estimate.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(24), rel=1e-9)
            assert estimate.count == 24


def test_values_that_are_not_finite_are_left_out_and_said_so() -> None:
    rows = table(measured(BASE, {"lpips": [0.1, math.nan, 0.3, None, math.inf]}))
    (summary,) = summarize_rows(rows, [BASE])
    assert summary.num_ok == 5
    assert summary.lpips.count == 2
    assert summary.lpips.mean == pytest.approx(0.2)
    page = Page(render_report(report_of(rows, (BASE,))))
    assert "StyleGAN2-W+: 3 of 5 ok images have no finite LPIPS [features]" in page.words


def test_the_newest_row_of_an_image_counts() -> None:
    first = [row(BASE, "a", status="failed", reason="timeout"), row(BASE, "b", mse=1.0)]
    second = [row(BASE, "a", mse=3.0)]
    (summary,) = summarize_rows(table(first + second), [BASE])
    assert (summary.num_ok, summary.num_failed, summary.mse.mean) == (2, 0, 2.0)


def test_one_image_has_a_mean_and_no_standard_error() -> None:
    (summary,) = summarize_rows(table(measured(BASE, {"mse": [0.25]})), [BASE])
    assert summary.mse.mean == 0.25
    assert math.isnan(summary.mse.standard_error)


# --- paired differences ------------------------------------------------------------------------------


def only(differences, metric: str, other: MethodInfo = BASE):
    (found,) = [one for one in differences if one.metric == metric and one.other == other.name]
    return found


def test_interval_is_that_of_the_paired_t_test() -> None:
    stream = np.random.default_rng(3)
    base = stream.normal(0.2, 0.02, 30).astype(np.float32).astype(np.float64)
    aligned = (base - stream.normal(0.01, 0.02, 30)).astype(np.float32).astype(np.float64)
    ids = [f"image {index}" for index in range(30)]
    rows = measured(BASE, {"sncd": list(base)}) + measured(LSAP, {"sncd": list(aligned[::-1])}, ids[::-1])
    difference = only(compare_pairs(table(rows), [BASE, LSAP]), "sncd")
    expected = ttest_rel(aligned, base).confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert difference.mean_difference == pytest.approx((aligned - base).mean(), rel=1e-9)
    assert difference.share_improved == np.mean(aligned < base)
    assert (difference.method, difference.relation, difference.num_images) == (LSAP.name, "base", 30)


def test_only_images_of_the_same_content_with_both_values_are_compared() -> None:
    base = measured(BASE, {"sncd": [0.2, 0.2, 0.2, 0.2, math.nan]})
    aligned = measured(LSAP, {"sncd": [0.1, 0.1, 0.1, 0.1, 0.1]})
    aligned[0]["digest"] = "another content"
    aligned[1] |= {"status": "failed", "reason": "not_finite", "sncd": None}
    aligned.append(row(LSAP, "only here", sncd=9.0))
    difference = only(compare_pairs(table(base + aligned), [BASE, LSAP]), "sncd")
    assert difference.num_images == 2
    assert difference.mean_difference == pytest.approx(-0.1)


def test_higher_identity_counts_as_improved_and_lower_distances_do() -> None:
    better = {"identity_similarity": [0.9, 0.8, 0.9, 0.9], "mse": [0.1, 0.6, 0.1, 0.1]}
    rows = measured(BASE, {"mse": [0.5] * 4}) + measured(LSAP, better)
    differences = compare_pairs(table(rows), [BASE, LSAP])
    assert only(differences, "identity_similarity").share_improved == 1.0
    assert only(differences, "mse").share_improved == 0.75


@pytest.mark.parametrize(
    ("aligned", "verdict", "words"),
    [
        ([0.10, 0.11, 0.12, 0.11], "lower", "SNCD of LSAP_O-W+ is lower than that of StyleGAN2-W+ by 0.0900 (45 %)"),
        ([0.30, 0.31, 0.32, 0.31], "higher", "SNCD of LSAP_O-W+ is NOT lower than that of StyleGAN2-W+"),
        ([0.10, 0.30, 0.11, 0.29], "no clear difference", "is not clearly lower than that of StyleGAN2-W+: no clear"),
        ([0.20, 0.20, 0.20, 0.20], "no clear difference", "no clear difference; 95 % interval of the difference 0.0"),
        ([0.10], "undetermined", "SNCD: 1 image with a value of both methods, too few to compare."),
        ([], "undetermined", "SNCD: 0 images with a value of both methods, too few to compare."),
    ],
)
def test_words_say_no_more_than_the_interval_allows(aligned: list[float], verdict: str, words: str) -> None:
    rows = table(measured(BASE, {"sncd": [0.2] * 4}) + measured(LSAP, {"sncd": aligned}))
    assert only(compare_pairs(rows, [BASE, LSAP]), "sncd").verdict == verdict
    assert words in Page(render_report(report_of(rows, (BASE, LSAP)))).words


def test_what_got_worse_is_named() -> None:
    worse = {"sncd": [0.10, 0.11], "lpips": [0.60, 0.61], "identity_similarity": [0.7, 0.71], "mse": [0.2, 0.8]}
    rows = table(measured(BASE, {"sncd": [0.2, 0.2]}) + measured(LSAP, worse))
    words = Page(render_report(report_of(rows, (BASE, LSAP)))).words
    assert "Worse: LPIPS [features] (+21 %)." in words
    assert "Better: identity similarity (+41 %)." in words
    assert "No clear difference in MSE." in words


@pytest.mark.parametrize(
    ("lpips", "is_matched", "words"),
    [
        (0.51, True, "LPIPS is matched (0.5100 against 0.5000, +2 %), so SNCD is compared at equal fidelity."),
        (0.60, False, "LPIPS is not matched (0.6000 against 0.5000, +20 %)"),
    ],
)
def test_control_is_compared_at_equal_fidelity_or_said_not_to_be(lpips: float, is_matched: bool, words: str) -> None:
    rows = measured(LSAP, {"sncd": [0.1, 0.11, 0.1], "lpips": [lpips] * 3})
    rows += measured(CONTROL, {"sncd": [0.15, 0.16, 0.17]}) + measured(BASE, {"sncd": [0.2] * 3})
    differences = compare_pairs(table(rows), METHODS)
    assert [(one.method, one.other) for one in differences if one.metric == "sncd"] == [
        (LSAP.name, BASE.name),
        (CONTROL.name, BASE.name),
        (LSAP.name, CONTROL.name),
    ]
    assert only(differences, "sncd", CONTROL).is_matched is is_matched
    assert only(differences, "sncd", CONTROL).relation == "control"
    assert words in Page(render_report(report_of(table(rows)))).words


def test_missing_base_and_missing_control_are_said(data: ReportData) -> None:
    words = Page(render_report(replace(data, methods=(LSAP,)))).words
    assert "LSAP_O-W+ is not compared with its base: stylegan2_w_plus was not run." in words
    assert "No control for LSAP_O-W+" in words
    assert "nothing to compare" in words


# --- the page ----------------------------------------------------------------------------------------


def test_table_holds_the_means_then_the_references(data: ReportData, page: Page) -> None:
    (rows,) = [one for one in page.tables if one[0][:2] == ["Method", "Images"]]
    for method, shown in zip(METHODS, rows[1:4], strict=True):
        mine = [one for one in data.rows.to_pylist() if one["method"] == method.name and one["status"] == "ok"]
        assert shown[0].strip() == method.title
        assert shown[1] == "24 ok1 failed, 1 duplicate"
        for cell, metric in zip(shown[2:], ("mse", "lpips", "lpips_judge", "identity_similarity", "sncd"), strict=True):
            values = np.array([one[metric] for one in mine], dtype=np.float64)
            assert cell == f"{values.mean():.4f}± {values.std(ddof=1) / math.sqrt(24):.4f}"
    assert [(" ".join(one[0].split()), one[-1]) for one in rows[5:]] == [
        ("floor", "0.0800"),
        ("mean code", "0.0810"),
        ("synthetic, ψ = 0.5", "0.1000"),
        ("synthetic, ψ = 0.7", "0.1200"),
        ("synthetic, ψ = 1", "0.1500"),
    ]


def test_best_mean_is_bold_but_never_of_sncd(data: ReportData, page: Page) -> None:
    summaries = summarize_rows(data.rows, METHODS)
    best = [f"{min(getattr(one, name).mean for one in summaries):.4f}" for name in ("mse", "lpips", "lpips_judge")]
    best.append(f"{max(one.identity_similarity.mean for one in summaries):.4f}")
    assert sorted(text for text in page.bold if not text.startswith("±")) == sorted(best)


def test_headline_has_the_three_numbers(data: ReportData, page: Page) -> None:
    _, aligned, _ = summarize_rows(data.rows, METHODS)
    assert "Images inverted24 of 26by every method; 1 failed, 1 duplicate" in page.words
    assert f"LPIPS, LSAP_O-W+{aligned.lpips.mean:.4f}" in page.words
    assert f"SNCD, LSAP_O-W+{aligned.sncd.mean:.4f}" in page.words
    assert "0.1500 for the generator's own codes" in page.words


@pytest.mark.parametrize(
    ("sncd", "words"),
    [
        (0.0815, "(0.0815) lies at the level of the mean code: its codes have collapsed toward the mean."),
        (0.13, "(0.1300) lies between ψ = 0.7 and ψ = 1: its codes point along the mean style more than"),
        (0.18, "(0.1800) lies 20 % above ψ = 1: its codes point further from the mean style than"),
    ],
)
def test_every_sncd_is_placed_among_its_references(sncd: float, words: str) -> None:
    page = Page(render_report(report_of(table(measured(BASE, {"sncd": [sncd] * 3})), (BASE,))))
    assert words in page.words


def test_page_loads_nothing_and_runs_nothing(data: ReportData, page: Page) -> None:
    loading = {"src", "href", "srcset", "action", "data", "poster"}
    links = [value for _, name, value in page.attributes if name in loading]
    assert len(links) > 8
    assert all(value.startswith(("data:image/png;base64,", "data:image/svg+xml;base64,", "#")) for value in links)
    assert not page.tags.keys() & {"script", "iframe", "object", "embed", "link", "base", "form"}
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    styles = re.findall(r"<style>.*?</style>", render_report(data), re.DOTALL)
    assert styles and not any("url(" in style or "@import" in style for style in styles)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    assert ("meta", "content", policy) in page.attributes


def test_drawings_are_complete_in_themselves(page: Page) -> None:
    prefix = "data:image/svg+xml;base64,"
    drawings = [
        base64.b64decode(value.removeprefix(prefix)).decode()
        for _, name, value in page.attributes
        if name == "src" and value.startswith(prefix)
    ]
    assert len(drawings) == 3
    for drawing in drawings:
        assert drawing.startswith("<svg ") and "<script" not in drawing and "#010203" not in drawing
        targets = re.findall(r'href="([^"]*)"', drawing)
        assert all(target.startswith(("#", "data:image/png;base64,")) for target in targets)
        ids = set(re.findall(r'id="([^"]*)"', drawing))
        used = [target[1:] for target in targets if target.startswith("#")] + re.findall(r"url\(#([^)]*)\)", drawing)
        assert used and ids.issuperset(used)


def test_same_data_give_the_same_page_in_every_thread(data: ReportData) -> None:
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(render_report, [data, data])
    assert first == second == render_report(data)


def test_hostile_names_stay_text() -> None:
    def build(name: str) -> ReportData:
        method = replace(LSAP, title=name)
        rows = measured(BASE, {"sncd": [0.2, 0.3]}, [name, "b"]) + measured(LSAP, {"sncd": [0.1, 0.1]}, [name, "b"])
        bad = {"status": "failed", "reason": name, "message": name, "uri": name}
        rows += [row(LSAP, f"{name} again", **bad), row(BASE, "c", status="duplicate", duplicate_of=name)]
        contact = (ContactRow(name, png(9), {BASE.name: ContactCell(png(1), png(2))}), ContactRow("c", png(9), {}))
        return report_of(
            table(rows),
            (BASE, method),
            title=name,
            created=name,
            archive_url=f"/{name}",
            config_yaml=name,
            domain=name,
            generator={"name": name, "size": (32, 32), "num_ws": 8, "w_dim": 64},
            perceptual=name,
            judge=name,
            identity=name,
            references={**REFERENCES, name: 0.11},
            contact=contact,
            summary={"device": name, "commit": name, "versions": {name: name}},
            locations={name: name},
        )

    quiet, loud = Page(render_report(build("harmless"))), Page(render_report(build(HOSTILE)))
    assert loud.tags == quiet.tags
    assert [one[:2] for one in loud.attributes] == [one[:2] for one in quiet.attributes]
    assert "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\\n\\r\\t{{ 7 * 7 }}" in loud.text
    assert not set(loud.text) & set("\x00\r\u202e\u2028")


def test_lone_surrogates_can_be_written() -> None:
    html = render_report(report_of(ROW_SCHEMA.empty_table(), (BASE,), locations={"report": "/data/\udcff.html"}))
    assert "/data/\\udcff.html" in html.encode().decode()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": ROW_SCHEMA.empty_table()}, "No image failed."),
        ({"rows": ROW_SCHEMA.empty_table()}, "No image has a finite LPIPS or SNCD, so there is nothing to draw."),
        ({"rows": ROW_SCHEMA.empty_table()}, "LSAP_O-W+: no image was inverted, so there is nothing to average."),
        ({"rows": ROW_SCHEMA.empty_table()}, "No image was kept for the contact sheet."),
        ({"rows": table([row(BASE, "a", status="failed", reason="r")])}, "StyleGAN2-W+: no image was inverted"),
        ({"rows": table(measured(BASE, {metric: [math.nan] for metric in METRICS}))}, "has no SNCD to place"),
        ({"rows": table(measured(BASE, {"sncd": [0.1, 0.1]})), "judge": None}, "No judge network: LPIPS is measured"),
        ({"rows": table(measured(BASE, {"sncd": [0.1, 0.1]})), "identity": None}, "No identity network"),
        ({"rows": table(measured(BASE, {"sncd": [0.1, 0.1]})), "references": {}}, "No reference rows were measured"),
        ({"rows": table(measured(CONTROL, {"sncd": [0.1]})), "methods": (BASE,)}, "not asked for: l2_w_plus."),
        ({"rows": ROW_SCHEMA.empty_table(), "methods": (), "references": {}}, "No method was run."),
        ({"rows": ROW_SCHEMA.empty_table(), "summary": {}}, "device not recorded"),
        ({"rows": table(measured(BASE, {"sncd": [0.1]})), "references": {"floor": math.nan}}, "cannot be placed"),
    ],
)
def test_what_is_missing_is_said(changes: dict, words: str) -> None:
    data = report_of(**changes)
    assert words in Page(render_report(data)).words
    assert render_markdown_table(data).startswith("| Method")


def sheet_of(page: Page) -> list[list[str]]:
    """Rows of the contact sheet."""
    (sheet,) = [one for one in page.tables if one[0][0] == "Image" and one[0][1:2] != ["Reason"]]
    return sheet


def links_of(page: Page) -> list[tuple[str, str]]:
    """Target and title of every link that is no part of an enlarged picture."""
    links, attributes = [], page.attributes
    for index, (tag, name, value) in enumerate(attributes):
        if (tag, name) == ("a", "href"):
            following = attributes[index + 1 : index + 2]
            links.append((value, following[0][2] if following and following[0][:2] == ("a", "title") else ""))
    return [(target, title) for target, title in links if not title.startswith(("the ", "enlarge", "back"))]


# --- contact sheet, failures, places -----------------------------------------------------------------


def test_contact_sheet_shows_every_method_or_why_not(data: ReportData, page: Page) -> None:
    sheet = sheet_of(page)
    lpips, sncd = (data.rows.column(name)[0].as_py() for name in ("lpips", "sncd"))
    assert sheet[1][0].split()[-1] == "test/0000"
    assert sheet[1][1].endswith(f"{lpips:.4f} · {sncd:.4f}")
    assert sheet[1][3] == "inverted, no picture kept"
    assert sheet[2][1:] == ["not inverted: truncated"] * 3
    assert ("img", "src", f"data:image/png;base64,{base64.b64encode(png(90)).decode()}") in page.attributes


def test_pictures_come_first_group_by_group_and_are_said_to_be_chosen(data: ReportData) -> None:
    groups = ("worst", "worst", "best", "random")
    contact = tuple(ContactRow(f"picture {index}", png(9), {}, group) for index, group in enumerate(groups))
    html = render_report(replace(data, contact=contact))
    page = Page(html)
    heads = [line[0].split()[-1] for line in sheet_of(page)]
    assert heads == ["Image", "Worst", "0", "1", "Best", "2", "Random", "3"]
    assert html.index("picture 0") < html.index("picture 3") < html.index('id="methods"')
    assert "Shown are the worst and the best of 24 images by LPIPS [features] of LSAP_O-W+, and others" in page.words
    all_of_them = Page(render_report(replace(data, contact=(ContactRow("a", png(9), {}),))))
    assert "the worst and the best" not in all_of_them.words
    assert len(sheet_of(all_of_them)) == 2


def test_a_click_leads_from_picture_to_picture_and_back(data: ReportData) -> None:
    cells = {method.name: ContactCell(png(90), png(10)) for method in (BASE, CONTROL)}
    page = Page(render_report(replace(data, contact=(ContactRow("a", png(9), cells),))))
    ids = [value for _, name, value in page.attributes if name == "id" and value.startswith("image-")]
    assert ids == ["image-0", "image-0-0", "image-0-1", "image-0-2"]
    leading = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href") and "#image-0" in value]
    assert leading[: 4 * 3] == [
        *("#image-0-0", "#image-0-2", "#image-0-1", "#image-0"),  # itself, the one before, the next, back
        *("#image-0-1", "#image-0-0", "#image-0-2", "#image-0"),
        *("#image-0-2", "#image-0-1", "#image-0-0", "#image-0"),
    ]


def test_failures_bars_and_points_lead_to_images_of_the_page(data: ReportData, page: Page) -> None:
    spots = [one for one in links_of(page) if one[1]]
    assert ("#image-0", "StyleGAN2-W+: test/0000") in spots
    of_methods = Counter(title.partition(":")[0] for _, title in spots if title.endswith("test/0000"))
    assert of_methods == {method.title: 3 for method in METHODS}  # two histograms and the scatter plot
    assert ("#image-1", "") in links_of(page)  # broken.png, among the failures
    places = [value for tag, name, value in page.attributes if (tag, name) == ("a", "style")]
    assert len(places) == 9
    tops = [float(re.findall(r"top: ([\d.]+)%", place)[0]) for place in places]
    assert tops[0] < 35 < tops[1] < tops[2]  # rows of a histogram from the first method down
    for place in places:
        left, top, width, height = map(float, re.findall(r"[\d.-]+(?=%)", place))
        assert 0 <= left < left + width <= 100 and 0 <= top < top + height <= 100
    without = Page(render_report(replace(data, contact=())))
    assert not [link for link in links_of(without) if link[0].startswith("#image-")]


def test_a_bar_leads_to_the_image_in_it() -> None:
    values = [0.1, 0.1, 0.2, 0.3, 0.3, 0.3]
    contact = tuple(ContactRow(f"image {index}", png(9), {}) for index in (2, 4, 5))
    rows = table(measured(BASE, {"sncd": values, "lpips": values}))
    page = Page(render_report(report_of(rows, (BASE,), contact=contact, references={})))
    bars = [(target, title) for target, title in links_of(page) if title][:2]
    assert bars == [("#image-0", "StyleGAN2-W+: image 2"), ("#image-1", "StyleGAN2-W+: image 4 and 1 more")]
    styles = [value for tag, name, value in page.attributes if (tag, name) == ("a", "style")]
    first, second = (float(re.findall(r"left: ([\d.]+)%", style)[0]) for style in styles[:2])
    assert first < 55 < second  # the middle and the right end of the axis
    tops = [float(re.findall(r"top: ([\d.]+)%", style)[0]) for style in styles[-3:]]
    assert tops[0] > tops[1] == tops[2]  # points: the larger SNCD is higher


def test_the_parts_of_a_loss_stand_beside_it(data: ReportData) -> None:
    losses = {
        BASE.name: LossParts(
            24, 0.48, {"lpips": 1.0, "noise_regularization": 1e5}, {"lpips": 0.06, "noise_regularization": 0.42}
        ),
        LSAP.name: LossParts(24, 0.5, {"lpips": 1.0, "sncd": 0.5}, {"lpips": 0.4, "sncd": 0.1}),
    }
    page = Page(render_report(replace(data, losses=losses)))
    (shown,) = [one for one in page.tables if one[0][-1] == "Final loss"]
    assert shown == [
        ["Method", "LPIPS", "SNCD", "noise regularization", "Final loss"],
        ["StyleGAN2-W+", "0.06001 × 0.0600", "–", "0.420100,000 × 0.0000042", "0.480"],
        ["LSAP_O-W+", "0.4001 × 0.400", "0.1000.5 × 0.200", "–", "0.500"],
    ]
    assert "Most of the final loss of StyleGAN2-W+ is noise regularization, which says how much structure" in page.words
    assert "Means over 24 images of each method at the last recorded step" in page.words
    assert "What the final loss is made of" not in Page(render_report(data)).words


@pytest.mark.parametrize(("side", "shown", "is_pixelated"), [(32, 64, True), (28, 84, True), (256, 128, False)])
def test_small_images_are_shown_at_a_whole_multiple(side: int, shown: int, is_pixelated: bool) -> None:
    contact = (ContactRow("a", png(9, side), {}),)
    html = render_report(report_of(ROW_SCHEMA.empty_table(), (BASE,), contact=contact))
    assert f".sheet img {{ display: block; width: {shown}px;" in html
    assert ('<table class="sheet pixelated">' in html) is is_pixelated


def test_failures_are_counted_by_image_and_the_first_are_listed() -> None:
    rows = [
        row(method, f"bad/{index}", status="failed", reason="truncated", message=f"ends at byte {index}")
        for method in METHODS
        for index in range(SHOWN_FAILURES + 10)
    ]
    rows += [row(LSAP, "worse", status="failed", reason="not_finite", message="the loss was nan")]
    page = Page(render_report(report_of(table(rows))))
    (reasons,) = [one for one in page.tables if one[0][0] == "Reason"]
    assert reasons[1:] == [["truncated", "60", "every method"], ["not_finite", "1", "LSAP_O-W+"]]
    (listed,) = [one for one in page.tables if one[0][:3] == ["Image", "Reason", "Message"]]
    assert len(listed) == 1 + SHOWN_FAILURES
    assert listed[1] == ["bad/0", "truncated", "ends at byte 0", "every method"]
    assert f"The first {SHOWN_FAILURES} of 61" in page.words


def publish(rows: pa.Table, url: str) -> None:
    """An archive of these rows, a run for each method."""
    geometry = Geometry(num_ws=2, w_dim=3, noise_sides=())
    writer = ArchiveWriter.open(url, generator_digest="9f86", generator_name="g", geometry=geometry)
    for method in METHODS:
        of_method = rows.filter(pc.equal(rows.column("method"), method.name))
        about = of_method.select(["image_id", "uri", "digest"]).to_pylist()
        planned = tuple(PlannedRow(index, **one) for index, one in enumerate(about))
        run = writer.start_run(RunPlan(method.name, method.name, method.name, {}, {}, planned, code_arrays(geometry)))
        measured = of_method.select(["status", "reason", "message", "duplicate_of", *METRICS])
        assert run.write_shard(0, {"w_plus": np.zeros((len(planned), 2, 3), np.float32)}, measured, "1")
        assert run.publish({})


def test_snippets_run_as_they_are_copied(data: ReportData, tmp_path) -> None:
    archive = tmp_path / 'it\'s "here" $HOME'
    publish(data.rows, str(archive))
    html = render_report(replace(data, archive_url=str(archive)))

    class Snippets(HTMLParser):
        found: list[str]
        inside = False

        def handle_starttag(self, tag, attrs):
            self.inside = ("class", "copy") in attrs
            if self.inside:
                self.found.append("")

        def handle_endtag(self, tag):
            self.inside = False

        def handle_data(self, data):
            if self.inside:
                self.found[-1] += data

    parser = Snippets()
    parser.found = []
    parser.feed(html)
    command, python, query = parser.found
    assert shlex.split(command) == ["lsap", "archive", "describe", str(archive)]
    constants = [node.value for node in ast.walk(ast.parse(python)) if isinstance(node, ast.Constant)]
    assert {str(archive), "test/0000", BASE.name} <= set(constants)
    program, option, sql = shlex.split(query)
    assert (program, option) == ("duckdb", "-c")
    with duckdb.connect() as connection:
        counts = {one[:2]: one[2] for one in connection.execute(sql).fetchall()}
    assert counts[(LSAP.name, "ok")] == 24
    assert counts[(LSAP.name, "failed")] == 1


def test_places_settings_and_provenance_are_on_the_page(page: Page) -> None:
    for text in ("s3://bucket/digits/runs/run/_manifest.json", "9f86", "abc1234", "2.15", "1 min 15 s"):
        assert text in page.words
    assert "set variable archive = 's3://bucket/digits'; " in page.text
    assert 'avg(sncd) from latest group by all"' in page.text
    (settings,) = [one for one in page.tables if "mean_code_weight" in one[0]]
    assert settings[0] == ["Method", "num_steps", "sncd_weight", "mean_code_weight"]
    assert settings[1:] == [
        ["StyleGAN2-W+", "5", "–", "–"],
        ["LSAP_O-W+", "5", "0.5", "–"],
        ["W+ with L2", "–", "–", "0.1"],
    ]
    assert "domain: digits\nmethods: [lsap_o_w_plus]\n" in page.text


def test_an_encoder_is_not_asked_for_the_settings_of_an_optimization(data: ReportData) -> None:
    encoder = MethodInfo("e4e", "e4e", {"num_passes": 1}, None, "e4e, 9f86d08", is_optimization=False)
    page = Page(render_report(replace(data, methods=(BASE, LSAP, encoder))))
    (settings,) = [one for one in page.tables if "num_passes" in one[0]]
    assert settings[0] == ["Method", "sncd_weight", "num_passes"]
    assert settings[1:] == [["StyleGAN2-W+", "–", "–"], ["LSAP_O-W+", "0.5", "–"], ["e4e", "–", "1"]]
    assert "encoder of e4e" in page.words and "e4e, 9f86d08" in page.words
    alone = Page(render_report(replace(data, methods=(encoder,))))
    assert "What differs between the methods" not in alone.words


def test_a_control_is_missed_where_a_method_begins_to_align_and_not_after(data: ReportData) -> None:
    faster = MethodInfo("faster", "LSAP_O-W+ from LSAP_E", LSAP.settings, LSAP.name)
    words = Page(render_report(replace(data, methods=(BASE, LSAP, faster)))).words
    assert "No control for LSAP_O-W+:" in words
    words = Page(render_report(replace(data, methods=(*METHODS, faster)))).words
    assert "No control for" not in words


# --- Markdown ----------------------------------------------------------------------------------------


def test_markdown_table_has_the_numbers_and_the_references(data: ReportData) -> None:
    lines = render_markdown_table(replace(data, methods=(replace(BASE, title="a|b"), LSAP, CONTROL))).splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line.startswith("|")]
    assert cells[0] == [
        "Method",
        "Images",
        "MSE ↓",
        "LPIPS [features] ↓",
        "LPIPS [judge net] ↓",
        "Identity [features] ↑",
        "SNCD",
    ]
    assert {len(line) for line in cells} == {7}
    assert [line[0] for line in cells[2:]] == [
        "a\\|b",
        "LSAP_O-W+",
        "W+ with L2",
        *(f"reference: {label.replace('psi', 'ψ')}".replace(" = ", "\xa0=\xa0") for label in REFERENCES),
    ]
    summary = summarize_rows(data.rows, METHODS)[1]
    assert cells[3][1] == "24 ok, 1 failed, 1 duplicate"
    assert cells[3][-1] == f"{summary.sncd.mean:.4f} ± {summary.sncd.standard_error:.4f}"
    assert cells[-1][-1] == "0.1500"
    assert "Lower SNCD is not always better" in lines[-1]
