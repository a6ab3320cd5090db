"""The paper's experiment with every file in its published layout: what is seen before the work, and the whole of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from flows.commands.cli import main
from flows.commands.reproductions import check_reproduction
from flows.parameters.reproduce import ReproduceRun
from lsap_archive import open_archive
from tasks.settings import Settings
from tests.rehearsal.experiments import Rehearsal

LSAP = Path(sys.executable).with_name("lsap")


@pytest.fixture
def rehearsal(faces: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> Rehearsal:
    for variable, value in faces.variables.items():
        monkeypatch.setenv(variable, value)
    return faces


def test_files_with_another_hash_are_taken_only_where_that_was_said(
    rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Hashes of directions, trunks of LPIPS and MTCNN are known: one rule for what lists, reproduces and inverts."""
    assert main(["domain", "weights", "face"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"21 of 21 are in {rehearsal.weights}"
    monkeypatch.delenv("LSAP_OTHER_WEIGHTS")
    assert main(["domain", "weights", "face"]) == 1
    others = "pose.pt, smile.pt, age.pt, vgg16-397923af.pth, alexnet-owt-7be5be79.pth, pnet.npy, rnet.npy, onet.npy"
    told = f"13 of 21 are in {rehearsal.weights}; another file than the published one: {others}"
    assert capsys.readouterr().out.splitlines()[-1] == told
    assert main(rehearsal.arguments()) == 2
    told = capsys.readouterr().err
    assert "pose.pt has SHA-256" in told and "is known by 736e0eac" in told
    inversion = rehearsal.folder / "invert.yaml"
    inversion.write_text(f"domain: face\nsource: {rehearsal.photos}\narchive: {rehearsal.archive}\n")
    assert main(["run", "invert", str(inversion), "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert "pose.pt has SHA-256" in told and "put the published file in its place" in told


@pytest.mark.parametrize(
    ("file", "document", "message"),
    [
        ("smile.pt", torch.ones(1, 256), r'edit "smile": .*smile\.pt: .*256'),
        ("onet.npy", {}, r"onet\.npy is not a \.npy file"),
        ("alexnet-owt-7be5be79.pth", {"features.0.weight": torch.ones(3)}, "not a readable file of weights for lpips-"),
        ("psp_ffhq_encode.pt", {"state_dict": {}}, r"psp_ffhq_encode\.pt: wanted an encoder checkpoint"),
    ],
)
def test_a_file_that_does_not_fit_is_told_before_an_image_is_read(
    rehearsal: Rehearsal, file: str, document: Any, message: str, capsys: Any
) -> None:
    place = rehearsal.weights / file
    published = place.rename(rehearsal.folder / file)
    torch.save(document, place)
    try:
        assert main([*rehearsal.arguments(), "--set", "frechet=null"]) == 2  # Inception takes seconds to look at
    finally:
        published.rename(place)
    (sentence,) = capsys.readouterr().err.splitlines()
    assert re.search(message, sentence), sentence
    assert not rehearsal.archive.exists()


@pytest.mark.rehearsal
@pytest.mark.slow
def test_the_experiment_is_checked_whole_before_an_image_is_read(
    whole: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in whole.variables.items():
        monkeypatch.setenv(variable, value)
    run = read(whole)
    places = {"archive": str(whole.folder / "none"), "source": str(whole.photos)}
    plan = check_reproduction(run.model_copy(update=places), "all", Settings.from_environment(), dry=False)
    assert plan["parts"] == list(run.chosen("all"))
    assert set(plan["bytes kept of an image, by refinement"]) == set(run.refined)
    assert not (whole.folder / "none").exists()


@pytest.mark.rehearsal
@pytest.mark.ray
@pytest.mark.slow
def test_the_experiment_ends_with_every_row(whole: Rehearsal) -> None:
    """`make rehearse-face`, `make rehearse-car`."""
    for made in (whole.archive, whole.output):
        shutil.rmtree(made, ignore_errors=True)
    command = [str(LSAP), *whole.arguments(at_work=True)]
    print("\n" + " ".join(f"{name}={value}" for name, value in whole.variables.items()), *command)
    done = subprocess.run([*command, "--json"], env=os.environ | whole.variables, stdout=subprocess.PIPE, check=True)
    report = json.loads(done.stdout)
    print(report["table"], f"\nreport: {report['page']}")

    run = read(whole)
    numbers = pq.read_table(whole.output / "report_tables.parquet").to_pylist()
    table = "table1" if "table1" in run.parts else "table4"
    rows = {row["row"] for row in numbers if row["table"] == table and row["measured"] is not None}
    assert rows >= set(run.rows(table))
    archive = open_archive(str(whole.archive))
    statuses = archive.sql("select status, count(*) n from rows group by status").to_pylist()
    assert [row["status"] for row in statuses] == ["ok"]
    for part in set(run.parts) & {"figure3", "figure5"}:
        assert len(list((whole.output / part).glob("*.png"))) >= 2


def read(rehearsal: Rehearsal) -> ReproduceRun:
    """The run that its command asks for."""
    _, _, _, path, *settings = rehearsal.arguments()
    return ReproduceRun.read(path, settings[1::2])
