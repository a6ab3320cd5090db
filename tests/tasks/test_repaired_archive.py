"""After a repair, the next inversion, edit and evaluation make exactly what was lost, with the values it had."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lsap_archive import Archive, EvaluationWriter, RunWriter, open_archive, repair_archive, verify_archive
from lsap_core.presets import method
from tasks.editing.calibration import CalibrationOptions
from tasks.evaluation.plan import EvaluationStage
from tasks.evaluation.request import EvaluationRequest
from tasks.evaluation.worker import EvaluationWorker
from tasks.measuring.networks import EvaluationChoice
from tasks.weights.generators import GeneratorFile

SLIGHT = {"slight": {"direction": "right", "strength": 0.5}}
EDITED = "e4e/slight"
NETWORKS = EvaluationChoice(lpips=("digits-judge",), identity=(), judge="digits-judge")
ALL = [f"{number}.png" for number in range(10)]


@pytest.fixture
def whole(desk: Any, new_encoder: Callable[..., str], tmp_path: Any) -> Any:
    """Ten images in shards of four, inverted, edited with images, and measured."""
    laboratory = desk.laboratory
    laboratory.encoders = {"e4e": new_encoder(tmp_path / "e4e.safetensors", title="e4e")}
    laboratory.methods = (method("e4e"),)
    laboratory.fill(10)
    laboratory.invert()
    desk.edit(SLIGHT, keep_images=True)
    evaluate(laboratory)
    return desk


def evaluate(laboratory: Any) -> list[tuple[str, int]]:
    """Measure what is left; method and images of every shard that was measured."""
    request = EvaluationRequest(
        archive=laboratory.archive,
        generator=GeneratorFile(laboratory.generator),
        methods=(),
        networks=NETWORKS,
        calibration=CalibrationOptions(num_images=4),
        source=str(laboratory.source),
        encoders=laboratory.encoders,
        batch_size=4,
        device="cpu",
    )
    worker = EvaluationWorker(request)
    done = []
    for job in EvaluationStage(request).jobs():
        assert all(worker(shard).won for shard in job.shards)
        EvaluationWriter.open(laboratory.archive, job.job_id).publish({})
        done += [(shard.name, shard.num_images) for shard in job.shards]
    return done


def seen(archive: Archive) -> dict[str, Any]:
    """Everything that readers see, in an order that does not depend on runs."""
    rows = "select method, image_id, status, mse, lpips, sncd from rows order by all"
    measured = 'select method, image_id, measure, "by", value, problem from measurements order by all'
    return {
        "rows": archive.sql(rows).to_pylist(),
        "measurements": archive.sql(measured).to_pylist(),
        "codes": [archive.codes(ALL, name).tobytes() for name in ("e4e", EDITED)],
        "images": archive.images(ALL, EDITED),
    }


def flip(store: Any, key: str) -> None:
    data = store.get(key)
    store.put(key, data[:100] + bytes([data[100] ^ 1]) + data[101:])


def key_of(archive: Archive, name: str, kind: str) -> str:
    run_id = next(run.run_id for run in archive.runs if run.method == name)
    return f"runs/{run_id}/{kind}"


def test_a_lost_shard_of_an_inversion_is_inverted_edited_and_measured_again(whole: Any) -> None:
    laboratory = whole.laboratory
    before = seen(open_archive(laboratory.archive))
    flip(laboratory.store, key_of(open_archive(laboratory.archive), "e4e", "w_plus/c/1/0/0"))
    assert len(verify_archive(laboratory.archive).problems) == 1
    report = repair_archive(laboratory.archive)
    assert [run.images for run in report.runs.values()] == [4]
    assert report.next_commands == ["lsap run invert", "lsap run edit", "lsap run evaluate"]
    prepared = laboratory.prepare()
    outcomes = laboratory.embed(prepared)
    assert [outcome.by_status for outcome in outcomes] == [{"ok": 4}]
    archive = laboratory.publish(prepared)
    again = archive.rows().filter(archive.rows().column("run_id").to_numpy(zero_copy_only=False) == prepared.runs[0])
    assert again.column("image_id").to_pylist() == ALL[4:8]
    _, results = whole.edit(SLIGHT, keep_images=True)
    assert [result.by_status for result in results] == [{"ok": 4}]
    assert evaluate(laboratory) == [("e4e", 4), (EDITED, 4)]
    assert seen(open_archive(laboratory.archive)) == before
    assert verify_archive(laboratory.archive).is_sound and repair_archive(laboratory.archive).runs == {}


@pytest.mark.parametrize("kind", ["w_plus/c/1/0/0", "images/00000005.png"])
def test_a_lost_shard_of_an_edit_is_edited_and_measured_again(whole: Any, kind: str) -> None:
    laboratory = whole.laboratory
    before = seen(open_archive(laboratory.archive))
    flip(laboratory.store, key_of(open_archive(laboratory.archive), EDITED, kind))
    assert repair_archive(laboratory.archive).next_commands == ["lsap run edit", "lsap run evaluate"]
    assert laboratory.prepare().shards == ()
    request = whole.request(SLIGHT, keep_images=True)
    assert [(shard.index, shard.num_images) for shard in whole.plan(request, start=False).shards] == [(1, 4)]
    archive, results = whole.edit(SLIGHT, keep_images=True)
    assert [result.by_status for result in results] == [{"ok": 4}]
    assert RunWriter.open(laboratory.archive, archive.runs[-1].run_id).own_shards == (1,)
    assert evaluate(laboratory) == [(EDITED, size) for size in (4, 4, 2)], "of a run that has but one of its shards"
    assert seen(open_archive(laboratory.archive)) == before
    assert whole.plan(request).shards == () and verify_archive(laboratory.archive).is_sound
    # and once more, of the run that made up for it
    flip(laboratory.store, f"runs/{archive.runs[-1].run_id}/{kind}")
    repair_archive(laboratory.archive)
    assert [shard.index for shard in whole.plan(request, start=False).shards] == [1]
    whole.edit(SLIGHT, keep_images=True)
    np.testing.assert_equal(seen(open_archive(laboratory.archive))["codes"], before["codes"])
    assert verify_archive(laboratory.archive).is_sound


def test_lost_measurements_alone_are_measured_again(whole: Any) -> None:
    laboratory = whole.laboratory
    archive = open_archive(laboratory.archive)
    before = seen(archive)
    flip(laboratory.store, f"evaluations/{archive.evaluations[0].evaluation_id}/shards/00002.parquet")
    assert repair_archive(laboratory.archive).next_commands == ["lsap run evaluate"]
    assert evaluate(laboratory) == [("e4e", 2)]
    assert seen(open_archive(laboratory.archive)) == before
    assert evaluate(laboratory) == [] and verify_archive(laboratory.archive).is_sound
