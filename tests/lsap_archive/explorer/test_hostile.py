"""Archives and links that strangers made: what they name is text, what they link asks for nothing that harms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from lsap_archive import (
    Archive,
    ArchiveWriter,
    EvaluationPlan,
    Geometry,
    PlannedRow,
    RunPlan,
    code_arrays,
    open_archive,
)
from lsap_archive.explorer.app import explorer_app
from lsap_archive.explorer.pictures import media_type
from tests.chromium import NAMES, Tab, browser, find_chromium

CHROMIUM = find_chromium()
in_browser = pytest.mark.skipif(CHROMIUM is None, reason=f"no Chromium here: none of {', '.join(NAMES)} was found")
HARM = "<img src=x onerror='window.harmed=1'><script>window.harmed=1</script>"
IDS = (
    HARM,
    "../../etc/passwd",
    "a'; drop table images; --",
    'b" onmouseover="window.harmed=1',
    "line\nbreak",
    "${window.harmed=1}{{7*7}}",
    "~0~1&image=x#?",
    "-" * 400,
    "\u202ereversed",
)


@pytest.fixture(scope="module")
def hostile_archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    url, geometry = str(tmp_path_factory.mktemp("hostile") / "archive"), Geometry(num_ws=1, w_dim=2, noise_sides=())
    writer = ArchiveWriter.open(url, generator_digest="9f86", generator_name=HARM, geometry=geometry)
    images = tuple(PlannedRow(row, name, f"/{HARM}/{row}", f"{HARM}{row}") for row, name in enumerate(IDS))
    run = writer.start_run(RunPlan("run", "lsap_e", "4a", {}, {}, images, code_arrays(geometry)))
    number = len(IDS)
    rows = pa.table(
        {
            "status": ["failed", *["ok"] * (number - 1)],
            "reason": [HARM, *[None] * (number - 1)],
            "message": [HARM, *[None] * (number - 1)],
            "mse": [float("nan"), float("inf"), *[0.1] * (number - 2)],
        }
    )
    assert run.write_shard(0, {"w_plus": np.zeros((number, 1, 2), dtype=np.float32)}, rows, "1") and run.publish({})
    plan = EvaluationPlan("evaluation", {"run_id": "run"}, "lsap_e", None, None, {}, {}, number, number)
    evaluation = writer.start_evaluation(plan)
    numbers = {"row": range(number), "image_id": IDS, "value": [0.5] * number, "measure": ["lpips'\""] * number}
    measured = pa.table({**numbers, "by": [f"{HARM}\"~'; drop table images; --"] * number})
    assert evaluation.write_shard(0, measured) and evaluation.publish({})
    return open_archive(url)


@pytest.fixture(scope="module")
def asking(hostile_archive: Archive) -> TestClient:
    return TestClient(explorer_app(hostile_archive), base_url="http://localhost")


def test_names_are_values_whatever_is_in_them(asking: TestClient) -> None:
    about = asking.get("/api/archive").json()
    measured = next(one["name"] for one in about["columns"] if one["name"].startswith("lpips'"))
    asked = {"limit": 50, "value": [measured, "mse"], "sort": measured, "range": f"{measured}~0~1"}
    rows = asking.get("/api/selection", params=asked).json()["rows"]
    assert {row["image"] for row in rows} == set(IDS) and {row["values"][measured] for row in rows} == {0.5}
    assert sorted(str(row["values"]["mse"]) for row in rows)[-2:] == ["inf", "nan"]
    told = asking.get("/api/histogram", params={"column": "mse"}).json()
    assert told["missing"] == 2 and sum(told["counts"]) == len(IDS) - 2
    for name in IDS:
        (row,) = asking.get("/api/image", params={"image": name}).json()["rows"]
        assert row["image"] == name
        assert asking.get("/api/selection", params={"text": name, "around": name}).json()["index"] == 0
        assert asking.get("/picture", params={"image": name, "method": "lsap_e", "v": "1"}).status_code == 404


def test_files_of_hostile_names_have_one_line_each_and_sql_that_runs(
    asking: TestClient, hostile_archive: Archive
) -> None:
    assert len(asking.get("/download/ids.txt").text.splitlines()) == len(IDS)
    about = asking.get("/api/archive").json()
    measured = next(one["name"] for one in about["columns"] if one["name"].startswith("lpips'"))
    for name in IDS:
        asked = {"text": name, "sort": measured, "range": f"{measured}~0~1"}
        file = asking.get("/download/selection.sql", params=asked).text
        assert hostile_archive.sql(file).column("image_id").to_pylist() == [name]


@pytest.mark.parametrize(
    "path",
    ["/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/download/..%2f..%2fetc%2fpasswd", "/../x"],
)
def test_no_path_leads_to_other_files(asking: TestClient, path: str) -> None:
    answer = asking.get(path)
    assert answer.status_code in (400, 404) and "import" not in answer.text


@pytest.mark.parametrize("file", [b"", b"<svg onload='x'>", b"<html>", b"RIFF1234WAVE", b"GIF89a", b"%PDF-1.7"])
def test_what_is_no_picture_is_never_sent_as_one(file: bytes) -> None:
    assert media_type(file) is None


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    assert CHROMIUM is not None
    with browser(CHROMIUM, tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


@in_browser
def test_nothing_that_is_named_runs(tab: Tab, serve_app: Any, hostile_archive: Archive) -> None:
    address = serve_app(explorer_app(hostile_archive))
    views = [{}, {"view": "compare", "sort": "mse"}, {"text": HARM, "sql": f"message = '{HARM}'"}, {"sql": HARM}]
    views += [{"method": HARM, "sort": HARM, "column": HARM, "size": HARM, "at": HARM, "show": HARM, "range": HARM}]
    for view in [*views, *({"image": name} for name in IDS)]:
        tab.open(f"{address}?{urlencode(view)}", width=1280, height=800)
        tab.wait_for("document.querySelector('#status').textContent != 'Loading …'")
        if "image" in view:
            tab.wait_for("document.querySelector('#detail-body').children.length > 0")
            title = tab.value_of("document.querySelector('#detail-id').textContent")
            assert title == view["image"]
        assert tab.value_of("window.harmed") is None
        assert tab.value_of("document.querySelectorAll('script, img[src=x], [onmouseover], [onerror]').length") == 1


@in_browser
def test_the_policy_of_the_page_stops_scripts_in_it(tab: Tab, serve_app: Any, hostile_archive: Archive) -> None:
    """Were a name ever taken for HTML, its scripts would not run either."""
    tab.open(serve_app(explorer_app(hostile_archive)), width=1280, height=800)
    tab.wait_for("document.querySelectorAll('.cell').length > 3")
    tab.value_of(
        "(() => { const frame = document.createElement('div'); document.body.append(frame);"
        'frame.innerHTML = \'<img src="x" onerror="window.harmed=1">\';'
        "const script = document.createElement('script'); script.textContent = 'window.harmed = 1';"
        "document.body.append(script); })()"
    )
    tab.wait_for("document.querySelector('div > img[src=x]').complete")
    assert tab.value_of("window.harmed") is None


def test_templates_escape(tmp_path: Path) -> None:
    from lsap_archive.explorer.page import page_of

    assert "<script>window" not in page_of(f"memory://{HARM}") and "&lt;script&gt;" in page_of(HARM)
