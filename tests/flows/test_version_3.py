"""An archive of another day is known again: today's planners find its finished work finished, and go on with the rest.

The archive and its images are `tests/lsap_archive/version_3.tar.xz`; below are the run files that it was made with.
Where a planner would begin something anew, archives in use would be computed again.
"""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from flows.parameters.edit import EditRun
from flows.parameters.evaluate import EvaluateRun
from flows.parameters.invert import InvertRun
from lsap_archive import RunWriter, open_archive, verify_archive
from tasks.editing import cost as cost_of_edits
from tasks.evaluation.plan import EvaluationStage
from tasks.inversion.cost import dry_run
from tasks.inversion.plan import InversionStage
from tasks.inversion.worker import EmbedWorker
from tasks.settings import Settings

VERSION_3 = Path(__file__).parents[1] / "lsap_archive" / "version_3.tar.xz"
UNFINISHED = "stylegan2_w-cd170d5472603ea0"
SLANT = {"direction": "slant", "strength": 3}
INVERT: dict[str, Any] = {
    "methods": ("lsap_o_w_plus", "e4e", "lsap_e"),
    "embedding": {"num_steps": 10},
    "method_settings": {"lsap_o_w_plus": {"record_every": 5}},
    "anchor": {"num_samples": 500},
    "shard_rows": 3,
}
BEGUN = {**INVERT, "methods": ("stylegan2_w",), "method_settings": {"stylegan2_w": {"record_every": 5}}}
EDIT: dict[str, Any] = {
    "methods": ("lsap_e",),
    "edits": {
        "slant": SLANT,
        "slant_equal": {"direction": "slant", "equal_effect": {"attribute": "slant", "change": 1.0}},
    },
    "keep_images": True,
}
EVALUATIONS: dict[str, dict[str, Any]] = {
    "inversions": {"methods": ("lsap_o_w_plus", "lsap_e"), "source": "images", "lec": {"slant": SLANT}},
    "an edit, of which two originals are there": {
        "methods": ("lsap_e/slant_equal",),
        "source": "two",
        "frechet": "digits-judge",
        "reference": "digits:train[:20]",
    },
    "synthetic images": {"methods": ("lsap_e",), "synthetic": {"count": 4}},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With `archive`, `images`, which lie elsewhere than when they were inverted, and `two` of them."""
    with tarfile.open(VERSION_3) as file:
        file.extractall(tmp_path, filter="data")
    (tmp_path / "two").mkdir()
    for name in ("0-zero.png", "1-one.png"):
        shutil.copy(tmp_path / "images" / name, tmp_path / "two" / name)
    return tmp_path


def inversion(folder: Path, fields: dict[str, Any]) -> InvertRun:
    return InvertRun(source=str(folder / "images"), archive=str(folder / "archive"), domain="digits", **fields)


def test_nothing_is_left_to_invert(folder: Path) -> None:
    told = dry_run(inversion(folder, INVERT).resolve(Settings()))
    assert told["images in the source"] == 6 and told["unfinished runs to resume"] == []
    assert (told["images left by method"], told["shards left"]) == ({}, 0)


def test_nothing_is_left_to_edit_or_to_calibrate(folder: Path) -> None:
    told = cost_of_edits.dry_run(EditRun(archive=str(folder / "archive"), domain="digits", **EDIT).resolve(Settings()))
    assert told["strengths"] == {"lsap_e/slant": 3.0, "lsap_e/slant_equal": 1.2328493788018982}
    assert (told["strengths to calibrate"], told["images left by edit, beside those to calibrate"]) == ([], {})
    assert told["shards left"] == 0


@pytest.mark.parametrize("name", EVALUATIONS)
def test_nothing_is_left_to_measure(folder: Path, name: str) -> None:
    fields = dict(EVALUATIONS[name])
    if "source" in fields:
        fields["source"] = str(folder / fields["source"])
    run = EvaluateRun(archive=str(folder / "archive"), domain="digits", **fields)
    stage = EvaluationStage(run.resolve(Settings()))
    left = list(stage.jobs())
    published = {info.evaluation_id for info in open_archive(run.archive).evaluations}
    assert list(stage.evaluations) == list(run.methods)
    assert {one for ids in stage.evaluations.values() for one in ids} <= published
    assert (left, stage.refused) == ([], {})


def test_of_what_was_begun_the_rest_is_done(folder: Path) -> None:
    request = inversion(folder, BEGUN).resolve(Settings())
    with InversionStage(request) as stage:
        (job,) = stage.jobs()
    assert job.job_id == UNFINISHED and not job.is_new
    (shard,) = job.shards
    assert (shard.index, shard.duplicates) == (1, {"4-three-again.png": "3-three.png"})
    outcome = EmbedWorker(request)(shard)
    assert outcome.won and outcome.by_status == {"ok": 2, "duplicate": 1}
    assert RunWriter.open(request.archive, UNFINISHED).publish({})
    archive = open_archive(request.archive)
    query = "select max(mse) as worst, count(*) as count from rows where method = 'stylegan2_w' and status = 'ok'"
    (row,) = archive.sql(query).to_pylist()
    assert row["count"] == 4 and row["worst"] < 0.2
    assert verify_archive(request.archive).is_sound
