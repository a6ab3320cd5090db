"""The report of edits: its pictures are those of the archive, names stay text, and what is there is not made again."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lsap_archive import open_archive
from lsap_core.presets import method
from tasks.reports.editing.write import EditingReportRequest, write_editing_report
from tasks.workers.pool import LocalPool, Pool
from tests.security.test_hostile_names import Reader

HOSTILE = "<img src=x onerror=alert(1)>.png"
IDS = ["1.png", HOSTILE, "gone"]
EDITS = {"less": {"direction": "right", "strength": -1.5}, "more": {"direction": "right", "strength": 1.5}}
METHODS = ("stylegan2_w_plus", "lsap_o_w_plus")


@pytest.fixture
def report(desk: Any) -> tuple[EditingReportRequest, Callable[[], Pool]]:
    """Two images, two methods and two edits; a third image cannot be read."""
    laboratory = desk.laboratory
    laboratory.methods = tuple(method(name, num_steps=2) for name in METHODS)
    laboratory.fill(2)
    laboratory.put(HOSTILE, laboratory.picture(2))
    laboratory.put("broken.png", b"nothing")
    laboratory.invert()
    desk.edit(EDITS, keep_images=True)
    asked = desk.request(EDITS, source=str(laboratory.source))
    names = [f"{name}/{edit}" for name in METHODS for edit in EDITS]
    refused = {"lsap_o_w_plus/far": "a change of 9 is out of reach"}
    wanted = EditingReportRequest(asked, names, refused, "edits: <b>\n", IDS, 1.0)
    return wanted, lambda: LocalPool(lambda: desk.worker(asked))


def test_a_row_of_pictures_for_each_method_and_the_table_beside_it(desk: Any, report: Any) -> None:
    written = write_editing_report(report[0], report[1])
    store = desk.laboratory.store
    page = store.get("reports/edit.html").decode()
    shown = [_gray(one) for one in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
    archive, place = open_archive(desk.laboratory.archive), iter(shown)
    for image_id in IDS[:2]:
        for row, name in enumerate(METHODS):
            if row == 0:
                original = Image.open(desk.laboratory.source / image_id)
                np.testing.assert_array_equal(next(place), np.asarray(original))
            next(place)  # the inversion, of which no image is kept
            for edit in EDITS:
                (kept,) = archive.images([image_id], f"{name}/{edit}")
                difference = next(place).astype(int) - np.asarray(Image.open(io.BytesIO(kept)))
                assert abs(difference).max() <= 1  # a batch of another size rounds differently
    assert next(place, None) is None
    text = Reader(page).text
    assert "less−1.5more+1.5" in re.sub(r"\s", "", text) and "No method has a code of its own of gone." in text
    rows = archive.sql("select method, image_id, sncd from rows where edit is null and status = 'ok'").to_pylist()
    sncd = [f"SNCD {row['sncd']:.4f}" for row in rows if row["image_id"] in IDS]
    assert len(sncd) == 4 and all(one in text for one in sncd)
    assert "lsap_o_w_plus/far has no strength: a change of 9 is out of reach" in text
    assert "not_inverted" in text and "3 images" in text and "1 without" in text
    markdown = store.get("reports/edit.md").decode().split("\n")
    assert markdown[2] == "| stylegan2_w_plus | less | −1.5 | 3 | 1 |"
    with Image.open(io.BytesIO(store.get("reports/edit.png"))) as drawn:
        assert drawn.height > 4 * 96 and drawn.width > 4 * 96
    assert written.picture == f"{desk.laboratory.archive}/reports/edit.png"
    assert 'href="./edit.html"' in store.get("reports/index.html").decode()


def test_a_hostile_name_on_the_page_is_text(desk: Any, report: Any) -> None:
    write_editing_report(report[0], report[1])
    page = Reader(desk.laboratory.store.get("reports/edit.html").decode())
    assert HOSTILE in page.text and "edits: <b>" in page.text
    assert not page.handlers and {"script", "b"} & page.tags <= {"b"}
    assert all(target.startswith(("data:image/png;", "#")) for target in page.targets)


def test_a_report_that_shows_all_there_is_is_not_written_again(desk: Any, report: Any) -> None:
    asked, open_pool = report

    def nobody() -> Pool:
        raise AssertionError("nothing is to be rendered")

    written = write_editing_report(asked, open_pool)
    before = {key: desk.laboratory.store.get(key) for key in desk.laboratory.contents()}
    assert write_editing_report(asked, nobody) == written
    assert {key: desk.laboratory.store.get(key) for key in desk.laboratory.contents()} == before
    desk.edit({"further": {"direction": "right", "strength": 3}})
    wider = EditingReportRequest(asked.editing, [*asked.edits, "lsap_o_w_plus/further"], {}, asked.config_yaml, 1, 1.0)
    write_editing_report(wider, open_pool)
    assert "further" in desk.laboratory.store.get("reports/edit.html").decode()


def _gray(encoded: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
