"""What the page's script gets: selections, distributions, details, neighbours, pictures, files."""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from lsap_archive import Archive, ArchiveWriter, Geometry, LiveDirection, Metric, Space, open_archive
from lsap_archive.explorer import answers
from lsap_archive.explorer.app import explorer_app

MSE = "select image_id from latest where method = 'lsap_e' order by mse desc nulls last, image_id"


def ids_of(client: TestClient, **asked: Any) -> list[str]:
    answer = client.get("/api/selection", params={"limit": 400, **asked})
    assert answer.status_code == 200, answer.text
    return [row["image"] for row in answer.json()["rows"]]


def test_what_there_is(client: TestClient, shown_archive: Archive) -> None:
    about = client.get("/api/archive").json()
    assert {one["name"]: one["kind"] for one in about["methods"]} == {
        "lsap_e": "inversion",
        "lsap_o_w_plus": "inversion",
        "lsap_e/hfgi": "refinement",
        "lsap_e/slant": "edit",
    }
    assert about["methods"][0]["counts"] == {"ok": 598, "failed": 1, "duplicate": 1}
    columns = {one["name"]: one for one in about["columns"]}
    assert columns["mse"]["worst"] == "high" and columns["identity_similarity"]["worst"] == "low"
    assert columns["identity [Faces]"]["worst"] == "low" and columns["identity [faces] *"]["kind"] == "number"
    assert [one["name"] for one in about["directions"]] == ["slant", "thickness"]


def test_worst_first_is_what_sql_says(client: TestClient, shown_archive: Archive) -> None:
    wanted = shown_archive.sql(MSE).column("image_id").to_pylist()
    asked = {"method": "lsap_e", "sort": "mse", "order": "desc"}
    assert ids_of(client, **asked) == wanted[:400]
    assert ids_of(client, **asked, offset=400) == wanted[400:]
    told = client.get("/api/selection", params={**asked, "around": wanted[123], "limit": 1}).json()
    assert (told["index"], told["total"]) == (123, 600)


@pytest.mark.parametrize(
    ("asked", "condition"),
    [
        ({"text": "0012"}, "image_id like '%0012%'"),
        ({"status": ["failed", "duplicate"]}, "status in ('failed', 'duplicate')"),
        ({"range": ["mse~0.02~0.05", "sncd~~0.09"]}, "mse between 0.02 and 0.05 and sncd <= 0.09"),
        ({"sql": "mse > 0.05 or status = 'failed' -- a remark"}, "mse > 0.05 or status = 'failed'"),
        ({"sql": "select image_id from images where mse < 0.01;"}, "mse < 0.01"),
        (
            {"sql": "with low as (from measurements where \"by\" = 'faces' and value < 0.3) select image_id from low"},
            "image_id in (select image_id from measurements where \"by\" = 'faces' and value < 0.3)",
        ),
        ({"range": ["identity [faces] *~0.3~0.4"]}, "false"),  # measured of the edit alone
    ],
    ids=str,
)
def test_filters_are_what_sql_says(
    client: TestClient, shown_archive: Archive, asked: dict[str, Any], condition: str
) -> None:
    query = f"select image_id from latest where method = 'lsap_e' and ({condition}) order by image_id"
    wanted = shown_archive.sql(query).column("image_id").to_pylist()
    assert ids_of(client, method="lsap_e", sort="image_id", **asked) == wanted[:400]
    file = client.get("/download/selection.sql", params={"method": "lsap_e", "sort": "image_id", **asked})
    assert shown_archive.sql(file.text).column("image_id").to_pylist() == wanted


def test_a_query_chooses_order_and_method(client: TestClient) -> None:
    query = "select image_id, method from latest where method in ('lsap_e', 'lsap_o_w_plus') and mse is not null "
    answer = client.get("/api/selection", params={"sql": query + "order by mse limit 20", "limit": 20, "value": "mse"})
    values = [row["values"]["mse"] for row in answer.json()["rows"]]
    assert len(values) == 20 and values == sorted(values)
    assert {row["method"] for row in answer.json()["rows"]} == {"lsap_o_w_plus"}


def test_differences_of_two_methods_sort(client: TestClient, shown_archive: Archive) -> None:
    query = (
        "select a.image_id from latest a join latest b using (image_id) where a.method = 'lsap_e' and "
        "b.method = 'lsap_o_w_plus' order by a.mse - b.mse desc nulls last, image_id limit 400"
    )
    asked = {"method": "lsap_e", "sort": "mse", "order": "desc", "minus": "lsap_o_w_plus", "with": ["lsap_e/slant"]}
    assert ids_of(client, **asked) == shown_archive.sql(query).column("image_id").to_pylist()
    (row,) = client.get("/api/selection", params={**asked, "limit": 1}).json()["rows"]
    assert row["others"]["lsap_e/slant"]["version"].startswith("lsap_e-slant/")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"sql": "mse <"}, "syntax error"),
        ({"sql": "nothing > 1"}, "nothing"),
        ({"sql": "select mse from images"}, "a column image_id is wanted"),
        ({"sql": "select image_id from images; drop table images"}, "syntax error"),
        ({"sql": "true) as a; drop table images; select 1 from (select 1 where (true"}, "syntax error"),
        ({"sql": "select 1/0 as image_id, error('no')"}, "no"),
        ({"sql": "mse > 0 -- " + "x" * 20_000}, "characters: 20000 are allowed"),
        ({"sort": "nothing"}, "no column nothing"),
        ({"method": "nothing"}, "no method nothing"),
        ({"range": "mse~a~b"}, "no number"),
        ({"range": "mse~nan~"}, "not finite"),
        ({"range": "method~1~2"}, "no range"),
        ({"text": "\0"}, "NUL"),
        ({"offset": "-1"}, "whole number"),
        ({"offset": "9" * 40}, "whole number"),
        ({"sort": "uri", "minus": "lsap_e"}, "no number"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_asked_wrongly_is_told(client: TestClient, asked: dict[str, str], told: str) -> None:
    answer = client.get("/api/selection", params=asked)
    assert answer.status_code == 400 and told in answer.json()["error"]


def test_a_histogram_counts_every_row_but_those_out_of_its_filters(client: TestClient, shown_archive: Archive) -> None:
    asked = {"method": "lsap_e", "column": "mse", "range": ["mse~0.03~", "sncd~~0.1"]}
    told = client.get("/api/histogram", params=asked).json()
    values = shown_archive.sql("select mse from latest where method = 'lsap_e' and sncd <= 0.1").column("mse")
    found = values.to_numpy()
    counts, _ = np.histogram(found, bins=len(told["counts"]))
    assert (told["low"], told["high"]) == (found.min(), found.max())
    assert sum(told["counts"]) == len(found) and np.abs(np.array(told["counts"]) - counts).max() <= 1
    told = client.get("/api/histogram", params={"method": "lsap_e", "column": "mse"}).json()
    assert told["missing"] == 2 and sum(told["counts"]) == 598
    told = client.get("/api/histogram", params={"method": "lsap_e", "column": "lpips"}).json()
    assert told["low"] is None and sum(told["counts"]) == 0
    assert client.get("/api/histogram", params={"column": "uri"}).status_code == 400


def test_an_image_is_told_by_every_method_with_all_columns(client: TestClient, shown_archive: Archive) -> None:
    name = shown_archive.sql("select image_id from latest where status = 'failed'").column(0)[0].as_py()
    rows = client.get("/api/image", params={"image": name}).json()["rows"]
    assert [row["method"] for row in rows] == ["lsap_e", "lsap_e/hfgi", "lsap_e/slant", "lsap_o_w_plus"]
    assert rows[0]["columns"]["reason"] == "non_finite_loss" and "onerror" in rows[0]["columns"]["message"]
    missing = client.get("/api/image", params={"image": "nobody"})
    assert missing.status_code == 400 and "no image nobody" in missing.json()["error"]


def quick_spaces(client: TestClient) -> dict[str, list[str]]:
    return {one["name"]: one["quick_spaces"] for one in client.get("/api/archive").json()["methods"]}


@pytest.mark.parametrize(
    ("space", "metric"), [("w_plus", "euclidean"), ("w_plus", "cosine"), ("w", "euclidean"), ("s_n", "cosine")]
)
def test_neighbours_are_those_of_the_reader_without_itself(
    client: TestClient, shown_archive: Archive, space: Space, metric: Metric
) -> None:
    name = ids_of(client)[20]
    asked = {"image": name, "method": "lsap_e", "k": 5, "space": space, "metric": metric}
    rows = client.get("/api/neighbours", params=asked).json()["rows"]
    code = shown_archive.codes([name], "lsap_e")[0]
    wanted = shown_archive.nearest(code, 6, "lsap_e", space=space, metric=metric).to_pylist()
    assert [(one["image"], one["distance"]) for one in rows] == [
        (one["image_id"], one["distance"]) for one in wanted[1:]
    ]
    if (space, metric) == ("w_plus", "euclidean"):
        assert client.get("/api/neighbours", params={"image": name, "method": "lsap_e", "k": 5}).json()["rows"] == rows


def test_neighbours_that_cannot_be_found_are_told_in_a_sentence(
    client: TestClient, archive_without_layers: Archive
) -> None:
    asked = {"image": ids_of(client)[20], "method": "lsap_e"}
    unknown = client.get("/api/neighbours", params={**asked, "space": "z"})
    assert unknown.status_code == 400 and unknown.json()["error"] == 'space is "z"; wanted w_plus, w, s_n'
    bare = TestClient(explorer_app(archive_without_layers), base_url="http://localhost")
    without = bare.get("/api/neighbours", params={**asked, "space": "s_n"})
    assert without.status_code == 400 and "any `lsap run invert` into this archive adds them" in without.json()["error"]
    assert bare.get("/api/neighbours", params={**asked, "space": "w"}).status_code == 200


def test_where_codes_are_many_the_page_is_told_to_ask_first(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, shown_archive: Archive
) -> None:
    assert {*map(tuple, quick_spaces(client).values())} == {("w_plus", "w", "s_n")}
    monkeypatch.setattr(answers, "_QUICK_VALUES", {"w_plus": 600 * 40, "w": 600 * 40, "s_n": 600 * 40 - 1})
    slower = TestClient(explorer_app(shown_archive), base_url="http://localhost")
    assert {*map(tuple, quick_spaces(slower).values())} == {("w_plus", "w")}


def test_pictures_are_kept_previews_and_may_be_kept(client: TestClient, shown_archive: Archive) -> None:
    names = ids_of(client, method="lsap_e")
    asked = {"image": names[20], "method": "lsap_e/slant", "v": "lsap_e-slant/20"}
    answer = client.get("/picture", params=asked)
    assert answer.content == shown_archive.previews([names[20]], "lsap_e/slant")[0]
    assert answer.headers["content-type"] == "image/webp" and "immutable" in answer.headers["cache-control"]
    again = client.get("/picture", params=asked, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    original = client.get("/picture", params={"image": names[20], "original": "1"})
    assert original.content == shown_archive.original_previews([names[20]])[0] != answer.content
    copy = client.get("/picture", params={"image": names[7], "method": "lsap_e"})
    assert copy.content == shown_archive.previews([names[6]], "lsap_e")[0]
    for name in (names[5], names[11], "nobody"):
        assert client.get("/picture", params={"image": name, "method": "lsap_e"}).status_code == 404
    assert client.get("/picture", params={"image": names[20], "method": "nothing"}).status_code == 400


def test_files_of_a_selection(client: TestClient, shown_archive: Archive) -> None:
    asked = {"method": "lsap_e", "sort": "mse", "order": "desc", "range": "mse~0.15~", "value": ["mse"]}
    names = ids_of(client, **asked)
    assert 5 < len(names) < 400
    assert client.get("/download/ids.txt", params=asked).text.splitlines() == names
    table = list(csv.DictReader(io.StringIO(client.get("/download/ids.csv", params=asked).text)))
    assert [row["image_id"] for row in table] == names and float(table[0]["mse"]) > 0.15
    assert list(table[0]) == ["image_id", "method", "status", "mse"]
    query = "select image_id, method from latest where method in ('lsap_e', 'lsap_e/slant') order by image_id limit 20"
    loaded = np.load(io.BytesIO(client.get("/download/codes.npz", params={"sql": query}).content), allow_pickle=False)
    assert sorted(loaded) == ["image_id", "method", "w_plus"]
    assert len(loaded["image_id"]) == 18  # one image failed
    for name, method, code in zip(loaded["image_id"], loaded["method"], loaded["w_plus"], strict=True):
        assert np.array_equal(code, shown_archive.codes([str(name)], str(method))[0])
    assert client.get("/download/other.exe").status_code == 400
    nothing = client.get("/download/codes.npz", params={"status": "failed"})
    assert nothing.status_code == 400 and "no image of this selection has a code" in nothing.json()["error"]


def test_more_codes_than_a_file_may_have_are_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lsap_archive.explorer.downloads.MOST_BYTES_OF_CODES", 100 * 2 * 20 * 4)
    answer = client.get("/download/codes.npz")
    assert answer.status_code == 400 and "600 codes were asked for, a file has up to 100" in answer.json()["error"]


def test_sliders_render_within_their_ends(client: TestClient) -> None:
    name = ids_of(client, method="lsap_e")[20]
    asked: dict[str, Any] = {"image": name, "method": "lsap_e"}
    at_zero = client.get("/live", params=asked)
    moved = client.get("/live", params={**asked, "strength": ["slant~2.0", "thickness~0"]})
    assert at_zero.headers["content-type"] == moved.headers["content-type"] == "image/webp"
    assert at_zero.content != moved.content and moved.headers["cache-control"] == "no-store"
    for strength, told in (
        ("slant~9", "outside of -4 to 4"),
        ("slant~nan", "outside"),
        ("x~1", "no direction x"),
        ("slant~a", "no number"),
    ):
        answer = client.get("/live", params={**asked, "strength": strength})
        assert answer.status_code == 400 and told in answer.json()["error"]
    assert "has no preview" in client.get("/live", params={"image": "nobody", "method": "lsap_e"}).json()["error"]


def test_an_id_that_would_make_a_file_huge_is_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lsap_archive.explorer.downloads.LONGEST_ID", 5)
    answer = client.get("/download/codes.npz")
    assert answer.status_code == 400 and "a name of 11 letters is among them" in answer.json()["error"]


def test_those_who_wait_for_a_picture_leave_threads_for_others(shown_archive: Archive) -> None:
    waiting, going_on = threading.Semaphore(0), threading.Event()

    class Slow:
        directions = (LiveDirection("slant", -1, 1, 0.1),)

        def render(self, image_id: str, method: str, strengths: Mapping[str, float]) -> bytes:
            waiting.release()
            assert going_on.wait(30)
            return b"\x89PNG\r\n\x1a\n"

    client = TestClient(explorer_app(shown_archive, live=Slow()), base_url="http://localhost")
    asked = {"image": "any", "method": "lsap_e"}
    with ThreadPoolExecutor(4) as threads:
        first = [threads.submit(client.get, "/live", params=asked) for _ in range(4)]
        assert all(waiting.acquire(timeout=30) for _ in first)
        fifth = client.get("/live", params=asked)
        going_on.set()
        assert [one.result().status_code for one in first] == [200] * 4
    assert fifth.status_code == 503 and "other pictures are being rendered" in fifth.json()["error"]
    assert client.get("/live", params=asked).status_code == 200


def test_an_archive_without_runs_is_shown_as_such() -> None:
    url = "memory://explorer-of-nothing"
    ArchiveWriter.open(url, generator_digest="9f", generator_name="none", geometry=Geometry(1, 2, ()))
    client = TestClient(explorer_app(open_archive(url)), base_url="http://localhost")
    assert client.get("/api/archive").json()["methods"] == [] and client.get("/").status_code == 200
    assert "there are none" in client.get("/api/selection").json()["error"]
