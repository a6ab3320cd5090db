"""SAM on a laboratory: segments and predicted errors choose, and what was found needs neither any more."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from lsap_archive import FAILED, OK, Archive, Store, open_archive, verify_archive
from lsap_core.errors import CheckpointError, ConfigError, MissingWeightsError
from lsap_core.presets import REFINERS, NamedRefiner
from lsap_core.refinement.network_files import NetworkCheckpoint
from lsap_core.refinement.sam_checkpoints import PREDICTOR
from lsap_core.refinement.sam_networks import InvertibilityPredictor, PredictorConfig
from tasks.archived.rendering import Stored
from tasks.editing.calibration import CalibrationOptions
from tasks.evaluation.plan import EvaluationStage
from tasks.evaluation.request import EvaluationRequest
from tasks.evaluation.worker import EvaluationWorker
from tasks.measuring.networks import EvaluationChoice
from tasks.refinement.plan import RefinementStage
from tasks.weights.generators import GeneratorFile
from tasks.weights.segmenters import SuperpixelSettings
from tests.refining import METHOD, RefiningDesk, pti

REFINED = f"{METHOD}/sam"
SPACES = ("W+", "F2", "F4")
NUM_STEPS = 4


def sam(**changes: Any) -> NamedRefiner:
    """A few steps, and a threshold that some segments pass in F2, and none in W+."""
    few = {"num_steps": NUM_STEPS, "prior_samples": 200, "record_every": 2, "threshold": 0.5378}
    return REFINERS["sam"].with_settings({**few, **changes})


@pytest.fixture(scope="session")
def predictor_data() -> Callable[..., bytes]:
    """Makes the file of a random predictor: `predictor_data(seed=1)`."""

    def make(seed: int = 5, spaces: tuple[str, ...] = SPACES, image_channels: int = 1, **told: Any) -> bytes:
        config = PredictorConfig("small", spaces, image_channels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            state = InvertibilityPredictor(config).state_dict()
        tensors = PREDICTOR.canonical(config, state, what="the test")
        checkpoint = NetworkCheckpoint(config, tensors, "safetensors", **told)
        return safetensors.torch.save(tensors, PREDICTOR.metadata(checkpoint))

    return make


@dataclass
class SamDesk:
    """Refines with a predictor in a file of its own."""

    refining: RefiningDesk
    predictor: Path

    def refine(self, refiner: NamedRefiner | None = None, **changes: Any) -> tuple[Archive, list[Any]]:
        return self.refining.refine(refiner or sam(), **{**self.files, **changes})

    @property
    def files(self) -> dict[str, Any]:
        return {"refiner_networks": {"sam": str(self.predictor)}}

    def plan(self, refiner: NamedRefiner | None = None, **changes: Any) -> RefinementStage:
        return RefinementStage(self.refining.request(refiner or sam(), **{**self.files, **changes}), start=False)

    def measure(self) -> Archive:
        """What was refined, without any file of a refiner."""
        laboratory = self.refining.laboratory
        request = EvaluationRequest(
            laboratory.archive,
            GeneratorFile(laboratory.generator),
            (REFINED,),
            EvaluationChoice(lpips=()),
            CalibrationOptions(num_images=4),
            batch_size=4,
            source=str(laboratory.source),
            device="cpu",
        )
        stage, worker = EvaluationStage(request), EvaluationWorker(request)
        for job in stage.jobs():
            for shard in job.shards:
                worker(shard)
            stage.publish(job.job_id)
        return open_archive(laboratory.archive)


@pytest.fixture
def sams(refining: RefiningDesk, predictor_data: Callable[..., bytes], tmp_path: Path) -> SamDesk:
    path = tmp_path / "predictor.safetensors"
    path.write_bytes(predictor_data())
    return SamDesk(refining, path)


def put_map(folder: str, name: str, labels: Any) -> None:
    file = io.BytesIO()
    Image.fromarray(np.asarray(labels)).save(file, "PNG")
    Store.from_url(folder).put(name, file.getvalue())


def masks_of(archive: Archive, image_id: str) -> dict[str, np.ndarray]:
    kept = archive.refined([image_id], REFINED)
    return {name: values[0] for name, values in kept.items() if name.startswith("mask_")}


def test_images_come_closer_and_are_edited_and_measured_without_any_file(sams: SamDesk, desk: Any) -> None:
    """Strength 0 is the refined inversion bit for bit; predictor and segmenter are gone by then."""
    archive, outcomes = sams.refine()
    assert [outcome.by_status for outcome in outcomes] == [{OK: 4}, {OK: 1}]
    paired = archive.sql(
        "select r.final_loss, r.num_steps, r.mse as refined, i.mse as inverted from rows r join rows i "
        "on r.subject_run_id = i.run_id and r.subject_row = i.row"
    ).to_pylist()
    assert len(paired) == 5 and all(row["num_steps"] == NUM_STEPS for row in paired)
    assert all(row["refined"] < row["inverted"] and row["final_loss"] > 0 for row in paired)
    covered = {name: float(mask.mean()) for name, mask in masks_of(archive, "0.png").items()}
    assert covered.keys() == {"mask_f2", "mask_f4"} and all(0 < mean < 1 for mean in covered.values())
    sams.predictor.unlink()
    edits = {name: {"direction": "right", "strength": strength} for name, strength in (("right", 2.0), ("none", 0.0))}
    archive, _ = desk.edit(edits, methods=(REFINED,))
    renderer, ids = sams.refining.renderer, ["1.png", "4.png"]
    inversion, same, other = (
        Stored.of_images(renderer, archive, ids, f"{REFINED}{edit}").render() for edit in ("", "/none", "/right")
    )
    assert torch.equal(same, inversion) and not torch.equal(other, inversion)
    measured = sams.measure().sql(
        "select m.value, r.mse from measurements m join rows r on m.image_id = r.image_id and m.method = r.method "
        "where m.measure = 'mse' and m.method = $method",
        method=REFINED,
    )
    assert len(measured) == 5
    for row in measured.to_pylist():
        assert row["value"] == pytest.approx(row["mse"], rel=1e-4)
    assert verify_archive(sams.refining.laboratory.archive).is_sound


def test_what_decides_segments_decides_the_refinement(sams: SamDesk, tmp_path: Path) -> None:
    """Another segmenter is another refinement with other masks; the same one is not made again."""
    archive, _ = sams.refine()
    run = next(run for run in archive.runs if run.method == REFINED)
    superpixels = {"num_segments": 200, "compactness": 30.0, "sigma": 1.0}
    told = {"name": "superpixels", "digest": None, "superpixels": superpixels}
    assert run.config["refiner"]["segmenter"] == told
    before = masks_of(archive, "0.png")
    assert sams.refine()[1] == []
    folder = tmp_path / "maps"
    for number in range(5):
        put_map(str(folder), f"{number}.png", np.zeros((32, 32), np.uint8))
    archive, outcomes = sams.refine(segmenter=f"maps:{folder}/")
    assert [outcome.by_status for outcome in outcomes] == [{OK: 4}, {OK: 1}]
    runs = [run for run in archive.runs if run.method == REFINED]
    assert len({run.method_digest for run in runs}) == 2 and len({run.run_id for run in runs}) == 2
    assert runs[-1].config["refiner"]["segmenter"]["name"] == f"maps:{folder}"
    whole = masks_of(archive, "0.png")  # one segment: one space for the whole image
    assert sorted(float(mask.mean()) for mask in whole.values()) == [0, 1]
    assert any(not np.array_equal(before[name], whole[name]) for name in before)


def test_other_superpixels_are_another_refinement_where_segments_are_asked_for(
    sams: SamDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of other refiners keep the ids that they had before there were segments."""

    def job_of(refiner: NamedRefiner, segmenter: str = "superpixels") -> str:
        return next(sams.plan(refiner, segmenter=segmenter).jobs()).job_id

    assert "segmenter" not in sams.plan(pti()).refinements[0].about
    assert job_of(pti()) == job_of(pti(), "maps:nowhere")
    first = job_of(sam())
    monkeypatch.setattr("tasks.weights.segmenters.SuperpixelSettings", lambda: SuperpixelSettings(num_segments=50))
    assert job_of(sam()) != first


def test_an_image_whose_map_is_missing_or_does_not_fit_is_a_row_with_its_reason(sams: SamDesk) -> None:
    """The others of its batch are refined by their own map, which may have another size, here by URL."""
    folder = f"memory://maps-{uuid.uuid4().hex}"
    halves = np.repeat(np.array([0, 9], np.uint8), 32)[None].repeat(64, axis=0)
    put_map(folder, "0.png", halves)
    put_map(folder, "2.png", halves[:32])
    Store.from_url(folder).put("3.png", b"no picture")
    archive, outcomes = sams.refine(segmenter=f"maps:{folder}")
    assert [dict(outcome.by_status) for outcome in outcomes] == [{OK: 1, FAILED: 3}, {FAILED: 1}]
    rows = archive.sql("select * from rows where method = $m order by image_id", m=REFINED).to_pylist()
    assert [(row["image_id"], row["status"], row["reason"]) for row in rows] == [
        ("0.png", OK, None),
        ("1.png", FAILED, "no_segments"),
        ("2.png", FAILED, "segments_do_not_fit"),
        ("3.png", FAILED, "segments_not_an_image"),
        ("4.png", FAILED, "no_segments"),
    ]
    assert f"1.png has no label map, wanted {folder}/1.png: put it there" in rows[1]["message"]
    assert "the label map is 64x32 pixels, its image 32x32; wanted the same aspect ratio" in rows[2]["message"]
    for mask in masks_of(archive, "0.png").values():  # two halves, apart from the soft border between them
        assert np.ptp(mask[:, : mask.shape[1] // 2 - 3]) < 0.05 and np.ptp(mask[:, mask.shape[1] // 2 + 3 :]) < 0.05


def test_wrong_files_are_refused_before_anything_is_written(
    sams: SamDesk, predictor_data: Callable[..., bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    before = sams.refining.laboratory.contents()
    with pytest.raises(MissingWeightsError, match=r"refiner sam needs its networks.*refiner_networks\.sam="):
        sams.plan(refiner_networks={})
    for name in ("face", "face_with_hair"):
        with pytest.raises(MissingWeightsError) as caught:
            sams.plan(segmenter=name)
        told = str(caught.value)
        for part in (f"segmenter {name} needs 79999_iter.pth", str(tmp_path), "LSAP_BACKBONES", "superpixels"):
            assert part in told
        assert told.count(". ") == 0
    with pytest.raises(ConfigError, match=r"maps:.*nowhere names no folder that is there; wanted one of label maps"):
        sams.plan(segmenter=f"maps:{tmp_path / 'nowhere'}")
    for data, message in (
        (predictor_data(spaces=("W+", "F2")), "the predictor knows W., F2; the settings choose from F4 too"),
        (predictor_data(image_channels=3), "reads 3-channel images, the generator makes 1-channel ones"),
    ):
        sams.predictor.write_bytes(data)
        with pytest.raises(ConfigError, match=message):
            sams.plan()
    assert sams.refining.laboratory.contents() == before


def test_another_predictor_than_planned_is_refused_and_where_it_came_from_is_told(
    sams: SamDesk, predictor_data: Callable[..., bytes]
) -> None:
    sams.predictor.write_bytes(predictor_data(generator_digest="0123"))
    stage = RefinementStage(sams.refining.request(sam(), **sams.files))
    assert stage.notes == ("sam was trained with another generator (0123)",)
    worker, job = stage.build_worker(), next(stage.jobs())
    sams.predictor.write_bytes(predictor_data(seed=1))
    with pytest.raises(CheckpointError, match=r"the refinement was made with .*refiner_networks.sam="):
        worker(job.shards[0])
