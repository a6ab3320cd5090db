"""SAM's predictor in training: inversions of an archive in each space, and what no predictor can learn from."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from lsap_archive import ArchiveKeyError, ArchiveMismatchError, Store, open_archive
from lsap_core.errors import ConfigError
from lsap_core.images import from_uint8, to_uint8
from lsap_core.presets import REFINER_TRAININGS, REFINERS
from lsap_core.training.sam_step import error_maps
from tasks.archived.rendering import Stored
from tasks.errors import SourceError
from tasks.training.inversions import InvertedView
from tasks.training.loop import TrainingOutcome, train_networks
from tasks.training.plan import prepare_training
from tasks.training.predictors import PredictorTrainingSpec
from tasks.training.store import BEST_KEY, OtherRunError, TrainingStore
from tasks.weights.generators import GeneratorFile, load_generator, save_generator
from tasks.weights.networks import load_networks
from tasks.weights.refiners import load_refiner_networks
from tests.refining import METHOD, RefiningDesk

SPACES = {"W+": f"{METHOD}/w_plus", "F2": f"{METHOD}/f2", "F4": f"{METHOD}/f4"}
CPU = torch.device("cpu")

NewTraining = Callable[..., PredictorTrainingSpec]


class Killed(BaseException):
    """Not an Exception: nothing on the way may take it for one."""


@pytest.fixture(scope="module")
def inverted(
    generator_file: str, new_laboratories: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory
) -> RefiningDesk:
    """Seven images, inverted in each space alone; no predictor and no segmenter is there."""
    laboratory = new_laboratories(tmp_path_factory.mktemp("images"))
    laboratory.fill(7)
    laboratory.invert()
    desk = RefiningDesk(laboratory)
    few = {"num_steps": 3, "prior_samples": 200}
    desk.refine(
        *(
            replace(REFINERS["sam"].with_settings({**few, "spaces": (space,)}), name=name.rpartition("/")[2])
            for space, name in SPACES.items()
        )
    )
    return desk


@pytest.fixture(scope="module")
def new_training(inverted: RefiningDesk) -> NewTraining:
    def new(**changes: Any) -> PredictorTrainingSpec:
        laboratory = inverted.laboratory
        settings = {"base": "small", "batch_size": 2, "num_steps": 5, "learning_rate": 1e-3, "error_scale": 2.0}
        values: dict[str, Any] = {
            "output": f"memory://training-{uuid.uuid4().hex}",
            "source": str(laboratory.source),
            "generator": GeneratorFile(laboratory.generator),
            "method": REFINER_TRAININGS["sam"].with_settings({**settings, **changes.pop("training", {})}),
            "networks": laboratory.networks,
            "archive": laboratory.archive,
            "inversions": SPACES,
            "validation_images": 3,
            "augmentation": "flip",
            "log_every": 2,
            "validate_every": 2,
            "checkpoint_every": 2,
            "sheet_images": 2,
        }
        return PredictorTrainingSpec(**{**values, **changes})

    return new


def train(spec: PredictorTrainingSpec, *, kill_at: int | None = None) -> TrainingOutcome:
    """Prepare and train, as a command does."""

    def after_step(step: int) -> None:
        if step == kill_at:
            raise Killed

    prepare_training(spec)
    return train_networks(spec, device=CPU, after_step=after_step)


def test_a_killed_training_ends_with_the_same_predictor_for_the_refiner(
    new_training: NewTraining, generator_file: str, tmp_path: Path
) -> None:
    """The file is what the refiner reads, and says by which inversions; what is learned is in units of the distance."""
    one, other = new_training(output=str(tmp_path / "one")), new_training()
    with pytest.raises(Killed):
        train(one, kill_at=3)
    assert train(one).resumed_at == 2
    train(other)
    stores = [TrainingStore(spec.output) for spec in (one, other)]
    for name in ("validation", "metrics"):
        rows = [store.table(name).drop_columns(["time"]).to_pylist() for store in stores]  # type: ignore[union-attr]
        told = [[{key: row[key] for key in row if key != "images_per_second"} for row in each] for each in rows]
        assert told[0] == told[1]
    for key in ("sam.safetensors", BEST_KEY):
        networks = [safetensors.torch.load(store.store.get(key)) for store in stores]
        assert all(torch.equal(value, networks[1].pop(name)) for name, value in networks[0].items()) and not networks[1]
    assert len({store.store.get("sheets/step-00000005.png") for store in stores}) == 1
    assert prepare_training(one).is_finished
    loaded = load_refiner_networks(str(tmp_path / "one" / "sam.safetensors"), load_generator(generator_file).config)
    assert (loaded.kind, loaded.generator_digest) == ("sam", load_generator(generator_file).digest)
    assert loaded.networks.predictor.spaces == tuple(SPACES)  # type: ignore[union-attr]
    data = (tmp_path / "one" / "sam.safetensors").read_bytes()
    assert all(name.encode() in data for name in SPACES.values())

    opened = one.open(stores[0], CPU)
    opened.training.load_state_dict(stores[0].load(stores[0].latest())["training"])  # type: ignore[arg-type]
    image = torch.zeros(1, 1, 32, 32)
    above, below = opened.pairs(image.expand(-1, 4, -1, -1))
    assert above.shape == below.shape == (1, 1, 32, 4 * 32)
    scaled = opened.training.training.predictor.eval()(image)  # type: ignore[attr-defined]
    torch.testing.assert_close(loaded.networks.predictor(image), scaled / 2)  # type: ignore[union-attr, operator]


def test_errors_are_those_between_images_and_their_pictures_in_the_archive(
    new_training: NewTraining, inverted: RefiningDesk
) -> None:
    """Each space has its own, by id; what is left of the images is rendered once."""
    spec = new_training()
    prepare_training(spec)
    opened = spec.open(store := TrainingStore(spec.output), CPU)
    view, ids = opened.view, store.listing("validation")["image_id"].to_pylist()
    assert isinstance(view, InvertedView) and view.channels == 4
    assert len(store.inverted("F4")) == 7
    archive, source = open_archive(spec.archive), inverted.laboratory.source
    pictures = [
        from_uint8(to_uint8(Stored.of_images(inverted.renderer, archive, ids, name).show())) for name in SPACES.values()
    ]
    images = torch.stack([from_uint8(view.image.decode((source / one).read_bytes())[None])[0] for one in ids])
    expected = error_maps(load_networks(spec.networks, CPU).perceptual, images, pictures)
    assert expected[:, 2].mean() < expected[:, 0].mean()  # F4 comes closer than W+
    told = opened.training.validate(torch.cat([images, *pictures], dim=1))
    for index, space in enumerate(SPACES):
        torch.testing.assert_close(told[f"{space} error"], expected[:, index].mean(dim=(1, 2)))
    train(spec)
    row = store.table("validation").to_pylist()[-1]  # type: ignore[union-attr]
    assert row["F4 error"] == pytest.approx(expected[:, 2].mean().item(), rel=1e-5)


def test_a_picture_that_changed_since_is_not_learned_from(new_training: NewTraining, inverted: RefiningDesk) -> None:
    """It is a bad image of the run, and another takes its place."""
    spec = new_training(max_failed_share=0.5)
    prepare_training(spec)
    path = inverted.laboratory.source / str(TrainingStore(spec.output).listing("train")["image_id"][0])
    before = path.read_bytes()
    try:
        path.write_bytes(inverted.laboratory.picture(99))
        train_networks(spec, device=CPU)
    finally:
        path.write_bytes(before)
    problems = TrainingStore(spec.output).table("problems").to_pylist()  # type: ignore[union-attr]
    assert {(one["image_id"], one["reason"]) for one in problems} == {(path.name, "not_inverted")}


def test_what_no_predictor_can_learn_from_is_refused(
    new_training: NewTraining, inverted: RefiningDesk, tmp_path: Path
) -> None:
    def refused(error: type[Exception], match: str, **changes: Any) -> None:
        spec = new_training(**changes)
        with pytest.raises(error, match=match):
            prepare_training(spec)
        assert Store.from_url(spec.output).keys() == []

    refused(
        ArchiveKeyError,
        r"has no method e4e/sam_f4: it has .*; wanted inversions in each latent space alone: refine with spaces: ",
        inversions={**SPACES, "F4": "e4e/sam_f4"},
    )
    refused(
        ConfigError,
        r"inversions\.F4: .*/f2 is none in F4 alone; wanted a refinement by SAM with spaces: \[F4\]$",
        inversions={**SPACES, "F4": SPACES["F2"]},
    )
    refused(ConfigError, r'F2: .*has placement "block", the predictor is for "up_conv"', placement="up_conv")
    (tmp_path / "9.png").write_bytes(inverted.laboratory.picture(9))
    refused(
        SourceError,
        r"1 of the 1 images of .*, such as 9\.png, have no inversion in W\+ \(.*/w_plus\) in memory:.*refine them",
        validation_source=str(tmp_path),
    )
    other = load_generator(inverted.laboratory.generator)
    other.generator.synthesis.conv_layers()[0].bias.data += 1
    save_generator(other.generator, str(tmp_path / "other.safetensors"))
    refused(
        ArchiveMismatchError, "holds images of generator", generator=GeneratorFile(str(tmp_path / "other.safetensors"))
    )


def test_other_inversions_are_another_training(new_training: NewTraining) -> None:
    """Those of W+ may also be an inversion's own."""
    spec = new_training()
    prepare_training(spec)
    with pytest.raises(OtherRunError, match=r"inversions is .*name another output"):
        prepare_training(replace(spec, inversions={**SPACES, "W+": METHOD}))
    with pytest.raises(OtherRunError, match=r"training\.num_steps is 5 there, 6 here"):
        prepare_training(replace(spec, method=spec.method.with_settings({"num_steps": 6})))
