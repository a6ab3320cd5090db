"""A group's inversions become the weights of one generator, and these refine: from the archive and back into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lsap_archive import ArchiveKeyError, ArchiveMismatchError, RunReader, Store
from lsap_core.presets import REFINER_TRAININGS, REFINERS
from tasks.archived.rendering import Renderer, Stored
from tasks.errors import SourceError
from tasks.refinement.plan import RefinementStage
from tasks.training.cost import dry_run
from tasks.training.data import TooManyBadImagesError
from tasks.training.loop import train_networks
from tasks.training.plan import prepare_training
from tasks.training.pti import PtiTrainingSpec
from tasks.training.spec import TrainingRequest, TrainingWorkers
from tasks.training.store import OtherRunError, TrainingStore
from tasks.weights.generators import GeneratorFile, load_generator, save_generator
from tasks.weights.refiners import load_refiner_networks
from tests.refining import METHOD, RefiningDesk

CPU = torch.device("cpu")
SHARED = REFINERS["pti_shared"]
REFINED = f"{METHOD}/pti_shared"

NewTuning = Callable[..., PtiTrainingSpec]


class Killed(BaseException):
    """Not an Exception: nothing on the way may take it for one."""


@pytest.fixture
def desk_of_five(laboratory: Any) -> RefiningDesk:
    laboratory.fill(5)
    laboratory.put("bad.png", b"no picture")
    laboratory.invert()
    return RefiningDesk(laboratory)


@pytest.fixture
def new_tuning(desk_of_five: RefiningDesk, tmp_path: Path) -> NewTuning:
    """Tunes to all images of the laboratory; `training` are changes of its settings."""
    laboratory = desk_of_five.laboratory
    training = {"num_steps": 7, "batch_size": 2, "learning_rate": 2e-2}

    def new(name: str = "tuned", **changes: Any) -> PtiTrainingSpec:
        values: dict[str, Any] = {
            "output": str(tmp_path / name),
            "source": str(laboratory.source),
            "archive": laboratory.archive,
            "subject": METHOD,
            "generator": GeneratorFile(laboratory.generator),
            "method": REFINER_TRAININGS["pti_shared"].with_settings({**training, **changes.pop("training", {})}),
            "networks": replace(laboratory.networks, identity=None),
            "validation_images": 5,
            "log_every": 2,
            "validate_every": 3,
            "checkpoint_every": 3,
            "sheet_images": 2,
        }
        return PtiTrainingSpec(**{**values, **changes})

    return new


def train(spec: PtiTrainingSpec, *, kill_at: int | None = None) -> int:
    """Prepare and train, as a command does; returns where it was taken up."""

    def after_step(step: int) -> None:
        if step == kill_at:
            raise Killed

    prepare_training(spec)
    return train_networks(spec, device=CPU, after_step=after_step).resumed_at


def weights_file(spec: PtiTrainingSpec) -> Path:
    return Path(spec.output) / "pti_shared.safetensors"


def test_a_group_is_tuned_killed_gone_on_with_and_refined(
    desk_of_five: RefiningDesk, new_tuning: NewTuning, desk: Any
) -> None:
    one, other = new_tuning("one"), new_tuning("other")
    with pytest.raises(Killed):
        train(one, kill_at=5)
    assert train(one) == 3
    train(other)
    loaded = [load_refiner_networks(str(weights_file(spec)), spec.generator.load().config) for spec in (one, other)]
    assert loaded[0].digest == loaded[1].digest and loaded[0].group == loaded[1].group
    rows = [
        [row["loss"] for row in TrainingStore(spec.output).table("validation").to_pylist()]  # type: ignore[union-attr]
        for spec in (one, other)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 3
    prepared = prepare_training(one)
    assert prepared.is_finished and (prepared.num_images, prepared.num_held_out) == (5, 5)
    assert prepared.notes[-1].startswith("left out: 1 images of ")
    (weights,) = load_file(weights_file(one)).values()
    assert weights.dtype == torch.float16 and len(weights) == prepared.num_parameters

    files = {"pti_shared": str(weights_file(one))}
    assert RefinementStage(desk_of_five.request(SHARED, refiner_networks=files), start=False).notes == (
        "pti_shared was tuned to 5 images, and 1 of the 6 of stylegan2_w_plus are not among them",
    )
    archive, outcomes = desk_of_five.refine(SHARED, refiner_networks=files)
    assert [outcome.by_status for outcome in outcomes] == [{"ok": 4}, {"ok": 1, "failed": 1}]
    paired = archive.sql(
        "select r.mse as refined, i.mse as inverted from rows r join rows i on r.subject_run_id = i.run_id "
        "and r.subject_row = i.row where r.method = $m and r.status = 'ok'",
        m=REFINED,
    ).to_pylist()
    assert len(paired) == 5 and sum(row["refined"] for row in paired) < 0.95 * sum(row["inverted"] for row in paired)
    (run,) = (run for run in archive.runs if run.method == REFINED)
    arrays = RunReader.open(archive.url, run.run_id).manifest.arrays
    assert {one.name for one in arrays} == {"w_plus"}  # nothing else of an image is kept

    edits = {name: {"direction": "right", "strength": far} for name, far in (("right", 2.0), ("none", 0.0))}
    archive, _ = desk.edit(edits, methods=(REFINED,), refiners=files)
    renderer, ids = Renderer(desk_of_five.renderer.generator, files), ["0.png", "3.png"]
    inversion, same, edited = (
        Stored.of_images(renderer, archive, ids, f"{REFINED}{edit}").render() for edit in ("", "/none", "/right")
    )
    assert torch.equal(inversion, same) and not torch.equal(inversion, edited)


def test_weights_of_other_codes_or_images_are_told(desk_of_five: RefiningDesk, new_tuning: NewTuning) -> None:
    spec = new_tuning(training={"num_steps": 1}, source=f"{desk_of_five.laboratory.source}/[01].png")
    train(spec)
    files = {"pti_shared": str(weights_file(spec))}
    desk_of_five.laboratory.invert(seed=1)  # other noise, other codes
    notes = RefinementStage(desk_of_five.request(SHARED, refiner_networks=files), start=False).notes
    assert notes == (
        "pti_shared was tuned to other codes (stylegan2_w_plus) than those of stylegan2_w_plus",
        "pti_shared was tuned to 2 images, and 4 of the 6 of stylegan2_w_plus are not among them",
    )
    with pytest.raises(OtherRunError, match=r"subject is .* there, .* here.*name another output"):
        prepare_training(spec)


def test_an_image_that_has_changed_since_is_not_one_of_its_pivot(
    desk_of_five: RefiningDesk, new_tuning: NewTuning
) -> None:
    desk_of_five.laboratory.put("2.png", desk_of_five.laboratory.picture(99))
    spec = new_tuning(max_failed_share=0.3)
    train(spec)
    problems = TrainingStore(spec.output).table("problems")
    assert problems is not None
    assert {(row["image_id"], row["reason"]) for row in problems.to_pylist()} == {("2.png", "changed")}
    with pytest.raises(TooManyBadImagesError, match=r"2.png: it is not the image that was inverted: invert it again"):
        train(new_tuning("strict"))


def test_what_cannot_be_tuned_is_refused_and_nothing_written(
    desk_of_five: RefiningDesk, new_tuning: NewTuning, generator_file: str, tmp_path: Path
) -> None:
    laboratory = desk_of_five.laboratory
    desk_of_five.refine()
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"subject": "e4e"}, ArchiveKeyError, "has no method e4e"),
        ({"subject": f"{METHOD}/pti"}, ArchiveKeyError, f"is refined already; wanted inversions: {METHOD}"),
        ({"source": f"{laboratory.source}/bad.png"}, SourceError, "could be inverted: the rows of .* say why"),
        ({"training": {"batch_size": 6}}, SourceError, "holds 5 images; a batch is 6"),
    ]
    stranger = load_generator(generator_file).generator
    torch.nn.init.constant_(stranger.synthesis.const, 0.5)
    save_generator(stranger, str(tmp_path / "stranger.safetensors"))
    generator = GeneratorFile(str(tmp_path / "stranger.safetensors"))
    cases.append(({"generator": generator}, ArchiveMismatchError, "name that archive's generator, or another archive"))
    cases.append(({}, SourceError, r"of 1 of the 7 images .* such as new.png: invert them"))
    for changes, error, match in cases:
        if not changes:
            laboratory.put("new.png", laboratory.picture(99))
        spec = new_tuning("refused", **changes)
        with pytest.raises(error, match=match):
            prepare_training(spec)
        assert Store.from_url(spec.output).keys() == []


def test_a_dry_run_times_steps_and_tells_the_size(new_tuning: NewTuning, generator_file: str) -> None:
    spec = new_tuning("dry")
    told = dry_run(TrainingRequest(spec, TrainingWorkers(), "cpu"))
    weights = sum(each.numel() for each in load_generator(generator_file).generator.synthesis.parameters())
    assert (told["images to train on"], told["parameters of the networks"]) == (5, weights)
    assert told["bytes of a checkpoint"] > 3 * 4 * weights
    assert Store.from_url(spec.output).keys() == []
