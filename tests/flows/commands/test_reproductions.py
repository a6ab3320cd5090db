"""`lsap domain weights` and what `lsap run reproduce` refuses, as the command line tells it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.commands.cli import main

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where published files are looked for."""
    monkeypatch.setenv("LSAP_BACKBONES", str(tmp_path))
    return tmp_path


def test_the_weights_of_a_domain_are_listed_with_what_is_there(folder: Path, capsys: Any) -> None:
    (folder / "e4e_church_encode.pt").write_bytes(b"some file")
    assert main(["domain", "weights", "church"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("e4e "))
    assert "e4e_church_encode.pt" in line and "found, hash not known" in line
    assert lines[-1] == f"1 of 7 are in {folder}"
    assert main(["domain", "weights", "church", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["weights"]["generator"]["state"] == "missing" and told["folder"] == str(folder)


def test_another_file_under_a_known_name_fails(folder: Path, capsys: Any) -> None:
    (folder / "vgg16-397923af.pth").write_bytes(b"not VGG")
    assert main(["domain", "weights", "wild"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any("another file" in line and "wanted 397923af" in line for line in lines)
    assert lines[-1] == f"0 of 7 are in {folder}; another file than the published one: vgg16-397923af.pth"


def test_another_folder_is_checked_and_says_what_each_file_there_is(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, capsys: Any
) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "e4e_church_encode.pt").write_bytes(b"some file")
    (other / "vgg16-397923af.pth").write_bytes(b"not VGG")
    assert main(["domain", "weights", "church", "--check", str(other), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(other)
    states = {role: one["state"] for role, one in told["weights"].items()}
    assert states == dict.fromkeys(states, "missing") | {"e4e": "found, hash not known", "lpips-vgg": "another file"}
    assert told["weights"]["e4e"]["offered_by"] == "omertov/encoder4editing on GitHub"
    assert main(["domain", "weights", "church", "--check", str(other / "no")]) == 2
    assert capsys.readouterr().err == f"lsap: {other / 'no'} is no folder; wanted one of files of weights\n"
    assert main(["domain", "weights"]) == 2
    assert "no domain is named: wanted one of face, car, church, wild" in capsys.readouterr().err


def test_a_domain_that_brings_everything_says_so(capsys: Any) -> None:
    assert main(["domain", "weights", "digits"]) == 0
    assert capsys.readouterr().out == 'domain "digits" needs no published file\n'


@pytest.mark.parametrize("table", ["table4", "all"])
def test_missing_weights_are_one_sentence_and_the_request_was_wrong(table: str, folder: Path, capsys: Any) -> None:
    assert main(["run", "reproduce", table, str(EXAMPLES / "reproduce_car.yaml")]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith('lsap: domain "car" needs stylegan2-car-config-f.pkl (generator); e4e_cars_encode.pt')
    assert "lsap domain weights car" in sentence


def test_a_dry_run_of_the_digits_says_what_would_be_done(tmp_path: Path, capsys: Any) -> None:
    config = str(EXAMPLES / "reproduce_digits.yaml")
    places = ["--set", f"archive={tmp_path / 'archive'}", "--set", "methods=[e4e]", "--set", "source=digits:test[:2]"]
    places += ["--set", "refined=[e4e/hfgi]"]
    assert main(["run", "reproduce", "table1", config, *places, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["parts"] == ["table1"]
    assert plan["inversion"]["images left by method"] == {"e4e": 2}
    edits = ["slant", "slant_equal", "stroke_width", "stroke_width_equal"]
    assert plan["edits"] == [f"{method}/{edit}" for method in ("e4e", "e4e/hfgi") for edit in edits]
    (kept,) = plan["bytes kept of an image, by refinement"].items()
    assert kept[0] == "e4e/hfgi" and kept[1] > 2 * 32 * 32  # what the code lacked, as float16, and the code
    assert not (tmp_path / "archive").exists()
