"""Another `fit` is another result of those images alone that do not have the generator's shape."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lsap_archive import Geometry, RunWriter, open_archive, planned_images, verify_archive
from lsap_core.presets import METHODS
from tasks.editing.calibration import CalibrationOptions
from tasks.evaluation.plan import EvaluationStage
from tasks.evaluation.request import EvaluationRequest
from tasks.evaluation.worker import EvaluationWorker
from tasks.inversion.known_images import KnownImages
from tasks.inversion.methods import plan_method, run_plan
from tasks.measuring.networks import EvaluationChoice
from tasks.pictures.decoding import Fit
from tasks.sources.source import PlannedImage
from tasks.weights.generators import GeneratorFile
from tasks.weights.networks import NetworkChoice

METHOD = "stylegan2_w_plus"


def newest(archive: Any, image_id: str) -> dict[str, Any]:
    row: dict[str, Any] = [row for row in archive.rows().to_pylist() if row["image_id"] == image_id][-1]
    return row


def left(laboratory: Any, **changes: Any) -> list[str]:
    """Ids of the images that a command would embed."""
    with_plans = laboratory.prepare(**changes)
    runs = [RunWriter.open(laboratory.archive, run_id) for run_id in with_plans.runs]
    return [image_id for run in runs for image_id in run.images.column("image_id").to_pylist()]


@pytest.fixture
def refused(laboratory: Any) -> Any:
    """Three digits, a wide picture, its copy and a text, inverted as the default has it."""
    laboratory.fill(3)
    laboratory.put("wide.png", laboratory.picture(7, 32, 48))
    laboratory.put("wide2.png", laboratory.picture(7, 32, 48))
    laboratory.put("z text.png", b"no picture")
    archive = laboratory.invert()
    assert [row["status"] for row in archive.rows().to_pylist()] == ["ok"] * 3 + ["failed"] * 3
    return laboratory


def test_following_the_advice_embeds_what_was_refused_and_nothing_else(refused: Any) -> None:
    prepared = refused.prepare(fit="crop")
    assert [shard.num_images for shard in prepared.shards] == [2]
    (outcome,) = refused.embed(prepared)
    assert outcome.by_status == {"ok": 1, "duplicate": 1}
    archive = refused.publish(prepared)

    first, second = archive.runs
    assert first.method_digest == second.method_digest and first.run_id != second.run_id
    assert [run.config["fit"] for run in archive.runs] == ["refuse", "crop"]
    assert archive.describe()["methods"][METHOD]["fits"] == ["crop", "refuse"]
    row = newest(archive, "wide.png")
    assert (row["status"], row["altered"], row["width"], row["height"]) == ("ok", "cropped", 48, 32)
    assert newest(archive, "wide2.png")["duplicate_of"] == "wide.png"
    assert newest(archive, "0.png")["altered"] == ""
    for name in (METHOD, first.method_digest):  # whoever asks for the method gets all of them
        assert np.isfinite(archive.codes(["0.png", "1.png", "2.png", "wide.png", "wide2.png"], name)).all()
    assert archive.sql("select count(*) as n from rows where altered like '%cropped%'").to_pylist() == [{"n": 2}]
    for fit in ("crop", "refuse"):
        assert left(refused, fit=fit) == []
    assert verify_archive(refused.archive).problems == []


def test_what_was_fitted_is_settled_for_that_fit_alone(refused: Any) -> None:
    wide = ["wide.png", "wide2.png"]
    for fit in ("crop", "letterbox", "stretch", "crop"):  # the last one asked for is what readers see
        assert sorted(left(refused, fit=fit)) == wide
        archive = refused.invert(fit=fit)
        assert newest(archive, "wide.png")["altered"] == {"crop": "cropped", "stretch": "stretched"}.get(
            fit, "letterboxed"
        )
        assert left(refused, fit=fit) == []
    assert len({run.method_digest for run in archive.runs}) == 1
    assert len({run.run_id for run in archive.runs}) == 5
    assert verify_archive(refused.archive).problems == []


def test_an_archive_that_began_with_another_fit_is_gone_on_with(laboratory: Any) -> None:
    laboratory.fill(2)
    laboratory.put("wide.png", laboratory.picture(7, 32, 48))
    (first,) = laboratory.invert(fit="crop").runs
    assert left(laboratory, fit="refuse") == ["wide.png"]
    archive = laboratory.invert(fit="refuse")
    assert {run.method_digest for run in archive.runs} == {first.method_digest}
    assert newest(archive, "wide.png")["reason"] == "not_square"  # it was asked for


def test_an_unfinished_run_is_finished_as_it_was_begun(laboratory: Any) -> None:
    laboratory.fill(1)
    laboratory.put("wide.png", laboratory.picture(7, 32, 48))
    begun = laboratory.prepare()
    again = laboratory.prepare(fit="crop")
    assert again.runs == begun.runs and "with the fit it was begun with, refuse" in again.jobs[0].note
    (outcome,) = laboratory.embed(again)
    assert outcome.by_reason == {"not_square": 1}
    laboratory.publish(again)
    assert left(laboratory, fit="crop") == ["wide.png"]


def test_titles_make_no_other_method_and_seeds_do(laboratory: Any) -> None:
    laboratory.fill(1)
    (run,) = laboratory.invert().runs
    renamed = (replace(laboratory.methods[0], title="what it is called now"),)
    assert left(laboratory, methods=renamed) == []
    laboratory.fill(2)
    archive = laboratory.invert(methods=renamed)
    assert [one.method_digest for one in archive.runs] == [run.method_digest] * 2
    assert left(laboratory, seed=1) == ["0.png", "1.png"]


def test_plans_that_differ_in_fit_alone_have_runs_of_their_own() -> None:
    images = [PlannedImage("a", "file:///a", "d")]
    networks = NetworkChoice("digits-features", "digits-features")
    named = {"generator_digest": "g", "anchor": "a", "networks": networks, "seed": 0, "geometry": Geometry(2, 3, (4,))}
    refuse, crop = (plan_method(METHODS[METHOD], fit=fit, **named) for fit in ("refuse", "crop"))
    plans = [run_plan(refuse, images, 2), run_plan(crop, images, 2), run_plan(crop, images, 2, known_as=refuse.digest)]
    assert len({plan.run_id for plan in plans}) == 3
    assert [plan.method_digest for plan in plans] == [refuse.digest, crop.digest, refuse.digest]


def test_rows_that_do_not_tell_what_was_fitted_are_judged_by_their_shape(laboratory: Any) -> None:
    """As they were written before schema version 4."""
    for name, content in (("a", b"1"), ("b", b"2"), ("b copy", b"2"), ("c", b"3"), ("d", b"4")):
        laboratory.put(f"{name}.png", content)
    (run_id,) = laboratory.prepare(shard_rows=16, fit="crop").runs
    run = RunWriter.open(laboratory.archive, run_id)
    rows = {
        "status": ["ok", "duplicate", "ok", "failed", "failed"],
        "reason": [None, None, None, "wrong_aspect", "truncated"],
        "duplicate_of": [None, "b.png", None, None, None],
        "width": [64, None, 48, None, None],
        "height": [64, None, 32, None, None],
    }
    order = run.images.column("image_id").to_pylist()
    assert order == ["a.png", "b copy.png", "b.png", "c.png", "d.png"]
    arrays = {name: np.zeros((5, *array.item_shape), np.float32) for name, array in run.arrays.items()}
    assert run.write_shard(0, arrays, pa.table(rows), "1") and run.publish({})

    def fitted(asked: Fit, size: tuple[int, int] | None) -> list[bool]:
        with KnownImages(planned_images([run]), size=size) as known:
            known.places_of(run.plan["method_digest"], asked)
            return [known.of(image_id)[0].is_fitted for image_id in order]

    assert fitted("letterbox", (32, 32)) == [False, True, True, True, False]
    assert fitted("letterbox", None) == [True, True, True, True, False]  # nobody knows
    assert fitted("crop", None) == [False] * 5  # nobody asks
    assert left(laboratory, fit="refuse") == ["b copy.png", "b.png", "c.png"]


def test_an_archive_of_an_older_schema_is_gone_on_with_as_well(laboratory: Any) -> None:
    laboratory.fill(2)
    run = RunWriter.open(laboratory.archive, laboratory.prepare().runs[0])
    rows = {"status": ["ok", "failed"], "reason": [None, "not_square"], "width": [32, None], "height": [32, None]}
    arrays = {name: np.zeros((2, *array.item_shape), np.float32) for name, array in run.arrays.items()}
    assert run.write_shard(0, arrays, pa.table(rows), "1") and run.publish({})
    assert left(laboratory, fit="refuse") == []
    assert left(laboratory, fit="stretch") == ["1.png"]


# --- whoever reads the originals once more ------------------------------------------------------------


def test_originals_are_measured_and_shown_as_their_run_fitted_them(refused: Any) -> None:
    refused.invert(fit="letterbox")
    request = EvaluationRequest(
        archive=refused.archive,
        generator=GeneratorFile(refused.generator),
        methods=(),
        networks=EvaluationChoice(),
        calibration=CalibrationOptions(num_images=4),
        batch_size=4,
        source=str(refused.source),
        device="cpu",
    )
    stage = EvaluationStage(request)
    jobs = list(stage.jobs())
    worker = EvaluationWorker(request)
    for job in jobs:
        for shard in job.shards:
            assert worker(shard).by_reason == {}
        stage.publish(job.job_id)
    archive = open_archive(refused.archive)
    found = {
        row["image_id"]: row
        for row in archive.measurements(["image_id", "measure", "value", "problem"]).to_pylist()
        if row["measure"] == "mse"
    }
    assert {image_id: row["problem"] for image_id, row in found.items()} == dict.fromkeys(
        ["0.png", "1.png", "2.png", "wide.png"]
    )
    assert found["wide.png"]["value"] == pytest.approx(newest(archive, "wide.png")["mse"], rel=0.1)
    row = newest(archive, "wide.png")
    preview = refused.worker(refused.prepare()).preview({METHOD: [row]})  # of a command that would refuse it
    assert list(preview[METHOD]) == ["wide.png"]
