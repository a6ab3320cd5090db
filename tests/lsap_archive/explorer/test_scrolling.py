"""A hundred thousand images in the grid: however far it is scrolled, the page stays small and every cell is filled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from lsap_archive import (
    Archive,
    ArchiveWriter,
    Geometry,
    PlannedRow,
    Preview,
    RunPlan,
    code_arrays,
    open_archive,
)
from lsap_archive.explorer.app import explorer_app
from tests.chromium import NAMES, Tab, browser, find_chromium
from tests.lsap_archive.explorer.conftest import webp

CHROMIUM = find_chromium()
in_browser = pytest.mark.skipif(CHROMIUM is None, reason=f"no Chromium here: none of {', '.join(NAMES)} was found")
NUM_IMAGES, SHARD_ROWS = 100_000, 8192
WITH_PREVIEWS = (0, 6, NUM_IMAGES // SHARD_ROWS)  # shards
MOST_CELLS = 120  # of 7 columns and about 5 lines in view, and two more on each side
FILLED = (
    "(cells => cells.length > 20 && cells.every(each => each.title && [...each.querySelectorAll('.picture')]"
    ".every(picture => picture.dataset.state != 'waiting')))([...document.querySelectorAll('.cell:not([hidden])')])"
)
FRAMES = """
window.frames_seen = [];
(function next(before) {
  requestAnimationFrame((now) => { if (before) frames_seen.push(now - before); next(now); });
})(0);
"""


@pytest.fixture(scope="module")
def large_archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    url, geometry = str(tmp_path_factory.mktemp("large") / "archive"), Geometry(num_ws=1, w_dim=2, noise_sides=())
    writer = ArchiveWriter.open(url, generator_digest="9f86", generator_name="none", geometry=geometry)
    images = tuple(PlannedRow(row, f"image-{row:06d}", f"/{row}.png", f"d{row}") for row in range(NUM_IMAGES))
    plan = RunPlan("run", "lsap_e", "4a", {}, {}, images, code_arrays(geometry), shard_rows=SHARD_ROWS)
    run = writer.start_run(plan)
    pictures = [webp(np.full((32, 32), 25 * shade)) for shade in range(10)]
    stream = np.random.default_rng(0)
    for shard in range(run.num_shards):
        rows = run.rows_of(shard)
        codes = {"w_plus": np.zeros((len(rows), 1, 2), dtype=np.float32)}
        table = pa.table({"status": ["ok"] * len(rows), "lpips": stream.gamma(4, 0.02, len(rows))})
        previews = [Preview(row, pictures[row % 10]) for row in rows] if shard in WITH_PREVIEWS else ()
        assert run.write_shard(shard, codes, table, "1", previews=previews)
    assert run.publish({})
    return open_archive(url)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    assert CHROMIUM is not None
    with browser(CHROMIUM, tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


def test_files_have_all_of_them(large_archive: Archive) -> None:
    client = TestClient(explorer_app(large_archive), base_url="http://localhost")
    wanted = [f"image-{row:06d}" for row in range(NUM_IMAGES)]
    assert client.get("/download/ids.txt").text.splitlines() == wanted
    asked = {"sort": "lpips", "value": "lpips"}
    lines = client.get("/download/ids.csv", params=asked).text.splitlines()[1:]
    values = [float(line.rpartition(",")[2]) for line in lines]
    assert len(values) == NUM_IMAGES and values == sorted(values)


def requests(tab: Tab, path: str) -> int:
    number: int = tab.value_of(
        f"performance.getEntriesByType('resource').filter(one => one.name.includes('{path}')).length"
    )
    return number


@in_browser
def test_scrolling_keeps_the_page_small_and_fills_every_cell(tab: Tab, serve_app: Any, large_archive: Archive) -> None:
    tab.open(serve_app(explorer_app(large_archive)), width=1280, height=800)
    tab.wait_for(FILLED)
    assert tab.value_of("document.querySelector('#status').textContent") == "100,000 images"
    tab.value_of("performance.setResourceTimingBufferSize(20000)")
    tab.value_of(FRAMES)
    most = 0
    for _ in range(60):
        tab.wheel("#grid", 240)
        most = max(most, tab.value_of("document.querySelectorAll('.cell').length"))
    tab.wait_for(FILLED)
    gaps = np.array(tab.value_of("frames_seen"))
    median, most_of, longest = np.quantile(gaps, (0.5, 0.95, 1.0))
    print(f"{len(gaps)} frames: median {median:.0f} ms, 95 % below {most_of:.0f} ms, longest {longest:.0f} ms")
    assert tab.value_of("document.querySelector('#grid').scrollTop") > 10_000
    assert most <= MOST_CELLS
    seen = tab.value_of("document.querySelectorAll('[data-state=there]').length")
    assert seen > 20
    parts, pictures = requests(tab, "api/selection"), requests(tab, "picture?")
    assert parts <= 6, "parts of 200 rows: one for what is seen first, and those below it"
    assert pictures <= 7 * (60 * 240 // 177 + 12)


@in_browser
def test_a_jump_to_the_end_asks_for_nothing_between(tab: Tab, serve_app: Any, large_archive: Archive) -> None:
    tab.open(serve_app(explorer_app(large_archive)), width=1280, height=800)
    tab.wait_for(FILLED)
    tab.value_of("document.querySelector('#grid').focus()")
    tab.press("End")
    tab.wait_for(f"document.querySelector('[aria-selected=true]')?.title == 'image-{NUM_IMAGES - 1:06d}'")
    tab.wait_for(FILLED)
    assert requests(tab, "api/selection") <= 4
    assert tab.value_of("document.querySelectorAll('.cell').length") <= MOST_CELLS
    tab.wait_for("location.search.includes('at=')")
    tab.open(tab.value_of("location.href"), width=1280, height=800)
    tab.wait_for(f"[...document.querySelectorAll('.cell')].some(each => each.title == 'image-{NUM_IMAGES - 1:06d}')")


@in_browser
def test_more_than_a_browser_can_scroll_is_scrolled(tab: Tab, serve_app: Any, large_archive: Archive) -> None:
    """On a phone with large pictures, lines of one image: 28 million pixels, of which browsers can scroll 12."""
    tab.open(serve_app(explorer_app(large_archive)) + "?size=256", width=400, height=800)
    few = "document.querySelectorAll('.cell:not([hidden])').length >= 3"
    tab.wait_for(f"{few} && document.querySelector('.cell').title")
    assert tab.value_of("document.querySelector('#spacer').offsetHeight") == 12_000_000
    top = "[...document.querySelectorAll('.cell:not([hidden])')].sort((a, b) => a.dataset.index - b.dataset.index)[0]"
    height = tab.box_of(".cell:not([hidden])")["height"]
    tab.wheel("#grid", 10 * height)
    tab.wait_for(f"{top}.dataset.index == '8'")  # ten lines, two of them kept above: no line is skipped
    tab.value_of("document.querySelector('#grid').scrollTop = 1e9")
    last = f"[...document.querySelectorAll('.cell')].find(each => each.title == 'image-{NUM_IMAGES - 1:06d}')"
    tab.wait_for(f"{last} && {last}.getBoundingClientRect().bottom <= innerHeight + 1")
