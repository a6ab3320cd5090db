"""The page in a browser, wide and narrow: nothing sticks out, a click enlarges a picture, heads stay in view."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from lsap_archive import ROW_SCHEMA
from tasks.reports.inversion.data import Choice, ContactCell, ContactRow, MethodInfo, ReportData
from tasks.reports.inversion.page import render_report
from tests.chromium import NAMES, Tab, browser, find_chromium

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"no Chromium here: none of {', '.join(NAMES)} was found")
METHODS = tuple(MethodInfo(f"m{number}", f"Method {number} of many words", {}, None) for number in range(7))
SIZES = {"wide": (1280, 800), "narrow": (400, 800)}


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (32, 32), shade).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stream = np.random.default_rng(3)
    ids = [f"test/a-rather-long-name-of-an-image-{number}.png" for number in range(12)]
    known = {"run_id": "run", "row": 0, "shard": 0, "attempt": "1", "digest": "d"}
    rows = [
        {**known, "image_id": name, "uri": name, "method": method.name, "status": "ok"}
        | dict.fromkeys(("mse", "lpips", "lpips_judge", "identity_similarity", "sncd"), stream.uniform(0.1, 0.2))
        for method in METHODS
        for name in ids
    ]
    rows[0] |= {"status": "failed", "reason": "non_finite_loss", "message": "the loss was no longer finite" * 9}
    cells = {method.name: ContactCell(png(90), png(10)) for method in METHODS}
    data = ReportData(
        title="A title with_one_word_that_is_longer_than_any_telephone_is_wide_in_characters",
        created="2026-01-02T03:04:05+00:00",
        archive_url="s3://bucket/" + "digits" * 30,
        config_yaml="domain: digits\n",
        domain="digits",
        generator={"name": "g", "digest": "9f86" * 16, "size": (32, 32), "num_ws": 8, "w_dim": 64, "image_channels": 1},
        perceptual="features",
        judge="judge",
        identity="features",
        methods=METHODS,
        rows=pa.Table.from_pylist(rows, schema=ROW_SCHEMA),
        references={"floor": 0.05, "synthetic, psi = 1": 0.2},
        contact=tuple(ContactRow(name, png(100), cells) for name in ids),
        choice=Choice(METHODS[0].title, 12),
        losses={},
        summary={},
        locations={},
    )
    path = tmp_path_factory.mktemp("page") / "invert.html"
    path.write_text(render_report(data))
    return path


@pytest.fixture(scope="module")
def one_tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    assert CHROMIUM is not None
    with browser(CHROMIUM, tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


@pytest.fixture(params=SIZES.values(), ids=SIZES)
def tab(request: pytest.FixtureRequest, one_tab: Tab, page: Path) -> Tab:
    width, height = request.param
    one_tab.open(page, width=width, height=height)
    return one_tab


def test_nothing_sticks_out_of_the_page(tab: Tab) -> None:
    assert tab.value_of("document.documentElement.scrollWidth <= innerWidth")
    assert tab.value_of("document.querySelector('.scroll').scrollWidth > 380")  # its table scrolls in a box of its own


def test_a_click_enlarges_a_picture_and_another_puts_it_back(tab: Tab) -> None:
    picture = "#image-3-1 img"
    small = tab.box_of(picture)
    tab.click(picture)
    tab.wait_for("location.hash == '#image-3-1'")
    large = tab.box_of(picture)
    assert large["width"] >= 4 * small["width"]
    assert large["left"] >= 0 and large["left"] + large["width"] <= tab.value_of("innerWidth")
    assert tab.value_of(
        "[...document.querySelectorAll('#image-3-1 img')].every("
        "each => document.elementsFromPoint(each.x + 9, each.y + 9).some(on => on.id == 'image-3-1'))"
    )
    tab.click("#image-3-1 .bar a:nth-of-type(2)")
    tab.wait_for("location.hash == '#image-3-2'")
    tab.click("#image-3-2 .close")
    tab.wait_for("location.hash == '#image-3'")
    assert tab.box_of(picture)["width"] == small["width"]
    assert 0 <= tab.box_of("#image-3")["top"] < 400  # what was looked at is in view again


def test_an_enlarged_original_lies_over_the_heads_of_its_table(tab: Tab) -> None:
    tab.click("#image-3-0 img")
    tab.wait_for("location.hash == '#image-3-0'")
    covered = (
        "(box => [...Array(40).keys()].map(n => document.elementFromPoint(box.x + 2 + n * box.width / 41, box.y + 4)))"
        "(document.querySelector('#images thead').getBoundingClientRect())"
    )
    assert tab.value_of(f"{covered}.every(on => on === null || on.closest('#image-3-0'))")
    assert tab.value_of(f"{covered}.some(on => on !== null)")


def test_heads_and_first_columns_stay_in_view(tab: Tab) -> None:
    box = "#images .scroll"
    tab.value_of(f"document.querySelector('{box}').scrollIntoView()")
    tab.value_of(f"document.querySelector('{box}').scrollTo(150, 500)")
    assert tab.value_of(f"document.querySelector('{box}').scrollTop") == 500
    assert abs(tab.box_of(f"{box} thead")["top"] - tab.box_of(box)["top"]) < 1
    assert abs(tab.box_of("#image-5 th")["left"] - tab.box_of(box)["left"]) < 1
    behind = tab.value_of(f"document.querySelector('{box}').scrollLeft")
    assert (
        abs(
            tab.box_of("#image-5 td")["left"]
            - tab.box_of("#image-5 th")["left"]
            - tab.box_of("#image-5 th")["width"]
            + behind
        )
        < 1
    )  # the others have moved below it


def test_a_table_that_goes_on_beyond_the_edge_fades_out_there(tab: Tab) -> None:
    fade = "getComputedStyle(document.querySelector('#images .scroll')).getPropertyValue('--fade')"
    is_cut = tab.value_of("(box => box.scrollWidth > box.clientWidth)(document.querySelector('#images .scroll'))")
    assert (tab.value_of(fade) != "0px") == is_cut
    tab.value_of("document.querySelector('#images .scroll').scrollTo(9999, 0)")
    tab.wait_for(f"{fade} == '0px'")


def test_a_bar_a_point_and_a_failure_lead_to_the_image(tab: Tab) -> None:
    for link in (".drawn.bars a", ".drawn.points a", "#failures th a"):
        target = tab.value_of(f"document.querySelector('{link}').hash")
        tab.click(link)
        tab.wait_for(f"location.hash == '{target}'")
        top = tab.box_of(target)["top"]
        assert 0 <= top < tab.value_of("innerHeight")
        tab.value_of("history.back()")
        tab.wait_for(f"location.hash != '{target}'")
