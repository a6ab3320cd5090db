"""`lsap-archive`, word by word: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lsap_archive import PlannedRow, open_archive
from lsap_archive.commands import exported
from lsap_archive.commands.command import main


@pytest.fixture
def url(local_place: Any, published: Callable[[Any], Any]) -> str:
    published(local_place)
    return str(local_place.url)


def test_an_archive_is_described_to_people_and_machines(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["methods"]["lsap_o"]["ok"] == 5
    assert main(["describe", url]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith(f"{url}: 1 runs, 5 rows") and shown[1] == "codes [2, 3] of generator tiny"
    assert shown[-1].split()[:5] == ["lsap_o", "1", "5", "0", "0"]


def test_damage_is_told_and_fails(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", url]) == 0
    assert capsys.readouterr().out.endswith("no problems\n")
    (Path(url) / "runs/run-1/rows/shard-00001.parquet").write_bytes(b"torn")
    assert main(["verify", url]) == 1
    shown = capsys.readouterr().out
    assert "runs/run-1/rows/shard-00001.parquet: found" in shown and shown.endswith(("1 problem\n", "problems\n"))
    assert main(["verify", url, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["is_sound"] is False


def test_answers_are_tables_or_json_without_what_json_has_not(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sql", url, "select image_id, row / 2 as half from rows order by row desc limit 2"]) == 0
    assert capsys.readouterr().out == "image_id  half\nimage-4      2\nimage-3    1.5\n"
    assert main(["sql", url, "select 'nan'::double as a, null as b, [1, 2] as c", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"a": None, "b": None, "c": [1, 2]}]


def test_names_do_not_command_the_terminal(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sql", url, "select 'a' || chr(27) || '[2J' as name"]) == 0
    assert capsys.readouterr().out == "name\na\\x1b[2J\n"


@pytest.mark.parametrize("by", ["image", "code"])
def test_the_nearest_code_to_an_images_own_is_that_image(
    by: str, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "code.npy", open_archive(url).codes(["image-3"], "lsap_o")[0])
    asked = ["--image", "image-3"] if by == "image" else ["--code", str(tmp_path / "code.npy")]
    assert main(["nearest", url, "lsap_o", *asked, "-k", "2", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["image_id"], first["distance"]) == ("image-3", 0.0)
    assert second["distance"] > 0


def test_several_are_asked_about_by_their_names(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = tmp_path / "w.npy"
    np.save(code, np.zeros(3))
    assert main(["nearest", url, "lsap_o", "--image", "image-3", "--code", str(code), "-k", "2", "--space", "w"]) == 0
    shown = capsys.readouterr()
    assert shown.out.split("\n")[1].split()[:3] == ["image-3", "image-3", "0"] and shown.err == ""
    assert [line.split()[0] for line in shown.out.splitlines()[1:]] == ["image-3"] * 2 + [str(code)] * 2


def test_a_picture_is_known_by_its_content(
    local_place: Any, work: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "anna.png").write_bytes(b"pixels")
    (tmp_path / "other.png").write_bytes(b"others")
    digest = hashlib.sha256(b"pixels").hexdigest()
    rows = (PlannedRow(0, "bert", "/bert.png", "0" * 64), PlannedRow(1, "anna", "/anna.png", digest))
    run = local_place.writer().start_run(work.plan(rows=rows))
    work.write_all(run)
    run.publish({})
    assert main(["nearest", local_place.url, "lsap_o", str(tmp_path / "anna.png"), "-k", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["image_id"] == "anna"
    assert main(["nearest", local_place.url, "lsap_o", str(tmp_path / "other.png")]) == 2
    assert "`lsap archive nearest` inverts such a picture" in capsys.readouterr().err


def test_an_index_is_made_and_asked(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["nearest", url, "lsap_o", "--image", "image-3", "--metric", "cosine"]
    assert main([*asked, "--approximate"]) == 2
    assert "make one with `lsap-archive index" in capsys.readouterr().err
    assert main(["index", url, "lsap_o", "--metric", "cosine"]) == 0
    assert "of the 10 nearest others of 5 codes it finds 100.0%" in capsys.readouterr().out
    assert main([*asked, "--approximate"]) == 0
    approximate = capsys.readouterr()
    assert main(asked) == 0
    assert approximate.out == capsys.readouterr().out
    assert approximate.err == "approximate: the index finds 100.0% of the 10 nearest\n"
    assert main(["index", url, "lsap_o", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recall"] == 1.0


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_exports_have_every_row_of_every_batch(
    suffix: str, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"rows{suffix}"
    out.write_text("of yesterday")
    query = "select range as number, [range] as list, image_id from range(70000), rows where row = 0 order by range"
    assert main(["export", url, str(out), "--sql", query, "--json"]) == 0  # more rows than a batch has
    assert json.loads(capsys.readouterr().out) == {"file": str(out), "rows": 70000}
    if suffix == ".csv":
        with out.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [int(row["number"]) for row in rows] == list(range(70000))
        assert rows[1] == {"number": "1", "list": "[1]", "image_id": "image-0"}
    else:
        table = pq.read_table(out)
        assert table.column("number").to_pylist() == list(range(70000))
        assert table.schema.field("list").type == pa.list_(pa.field("l", pa.int64()))


def test_a_table_is_exported_whole(url: str, tmp_path: Path) -> None:
    assert main(["export", url, str(tmp_path / "rows.parquet"), "--table", "rows"]) == 0
    assert pq.read_table(tmp_path / "rows.parquet").equals(open_archive(url).sql("select * from rows"))
    assert main(["export", url, str(tmp_path / "none.csv"), "--table", "measurements"]) == 0
    assert (tmp_path / "none.csv").read_text().startswith('"evaluation_id"')


def test_an_export_that_fails_leaves_what_was_there(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "rows.csv"
    out.parent.mkdir()
    out.write_text("of yesterday")
    late = "select case when range < 69999 then 1 else error('too late') end from range(70000)"
    assert main(["export", url, str(out), "--sql", late]) == 2
    assert "the query was refused" in capsys.readouterr().err
    monkeypatch.setattr(exported, "_in_schema", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    assert main(["export", url, str(out)]) == 1
    assert capsys.readouterr().err == "lsap-archive: no space left\n"
    assert {path.name: path.read_text() for path in out.parent.iterdir()} == {"rows.csv": "of yesterday"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["describe", "{url}/nothing"], "is not an archive"),
        (["sql", "{url}", "select nothing from rows"], "the query was refused"),
        (["nearest", "{url}", "psp", "--image", "image-0"], "no published run of method psp: it has lsap_o"),
        (["nearest", "{url}", "lsap_o", "--image", "anna"], "has no image anna"),
        (["nearest", "{url}", "lsap_o", "--code", "{url}/archive.json"], "wanted an .npy file with the numbers"),
        (["nearest", "{url}", "lsap_o", "--code", "{url}/no.npy"], "does not exist"),
        (["nearest", "{url}", "lsap_o", "--image", "image-0", "-k", "0"], "k is 0"),
        (["nearest", "{url}", "lsap_o"], "nothing is asked about"),
        (["nearest", "{url}", "lsap_o", "{url}/no.png"], "cannot be read (No such file or directory)"),
        (["nearest", "{url}", "lsap_o", "--image", "image-0", "--space", "s_n"], "keeps no style layers"),
        (["index", "{url}", "psp"], "no published run of method psp"),
        (["export", "{url}", "rows.xlsx"], "ends in .xlsx; wanted .parquet or .csv"),
        (["export", "{url}", "{url}/no/rows.csv"], "is no folder"),
        (["describe", "s3://user:secret@host/bucket"], "carries"),
    ],
)
def test_what_is_asked_wrongly_is_told_in_one_line(
    words: list[str], told: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.replace("{url}", url) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and told in captured.err and "secret" not in captured.err
    assert captured.err.startswith("lsap-archive: ") and captured.err.count("\n") == 1
