"""Networks of a refiner in training: the store and the loop of encoders, and what is different about them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from lsap_archive import Store
from lsap_core.encoders import Encoder, EncoderConfig
from lsap_core.errors import CheckpointError, ConfigError
from lsap_core.inversion.by_encoder import EncoderEmbedder, EncoderSettings
from lsap_core.presets import REFINER_TRAININGS
from lsap_core.training.hfgi_step import HfgiTraining
from tasks.training.loop import TrainingOutcome, train_networks
from tasks.training.plan import prepare_training
from tasks.training.refiners import RefinerTrainingSpec, TrainingOnCodes, assemble, build_first_networks
from tasks.training.store import BEST_KEY, OtherRunError, TrainingStore
from tasks.weights.encoders import encode_encoder, load_encoder
from tasks.weights.generators import GeneratorFile, load_generator
from tasks.weights.networks import NetworkChoice
from tasks.weights.refiners import load_refiner_networks

SETTINGS = {
    "batch_size": 4,
    "num_steps": 5,
    "decay_steps": 3,
    "learning_rate": 1e-2,
    "widths": "small",
    "starts_without_effect": True,
}
CPU = torch.device("cpu")

NewTraining = Callable[..., RefinerTrainingSpec]


class Killed(BaseException):
    """Not an Exception: nothing on the way may take it for one."""


@pytest.fixture(scope="module")
def encoder_file(generator_file: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An encoder of the tests' generator, with statistics that a forward pass in training mode would move."""
    loaded = load_generator(generator_file)
    torch.manual_seed(1)
    encoder = Encoder(EncoderConfig.for_generator(loaded.config, heads="offsets", backbone="small"))
    path = tmp_path_factory.mktemp("encoder") / "mine.safetensors"
    path.write_bytes(encode_encoder(encoder, generator_digest=loaded.digest, title="Mine"))
    return str(path)


@pytest.fixture(scope="module")
def new_training(generator_file: str, encoder_file: str) -> NewTraining:
    def new(**changes: Any) -> RefinerTrainingSpec:
        settings = {**SETTINGS, **{name: changes.pop(name) for name in list(changes) if name in SETTINGS}}
        values: dict[str, Any] = {
            "output": f"memory://training-{uuid.uuid4().hex}",
            "source": "digits:train[:18]",
            "generator": GeneratorFile(generator_file),
            "method": REFINER_TRAININGS["hfgi"].with_settings(settings),
            "networks": NetworkChoice("digits-features", "digits-features", identity="digits-features"),
            "encoder": encoder_file,
            "encoder_name": "mine",
            "embedding": EncoderSettings(),
            "validation_images": 5,
            "augmentation": "digits",
            "log_every": 2,
            "validate_every": 2,
            "checkpoint_every": 2,
            "sheet_images": 2,
        }
        return RefinerTrainingSpec(**{**values, **changes})

    return new


def train(spec: RefinerTrainingSpec, *, kill_at: int | None = None) -> TrainingOutcome:
    """Prepare and train, as a command does."""

    def after_step(step: int) -> None:
        if step == kill_at:
            raise Killed

    prepare_training(spec)
    return train_networks(spec, device=CPU, after_step=after_step)


def results(spec: RefinerTrainingSpec) -> dict[str, Any]:
    """Networks, states and curves of a folder."""
    store = TrainingStore(spec.output)
    found: dict[str, Any] = {}
    for key in store.store.sizes():
        if key.endswith(".safetensors"):
            found[key] = {
                name: each.numpy().tobytes() for name, each in safetensors.torch.load(store.store.get(key)).items()
            }
        elif key.startswith("sheets"):
            found[key] = store.store.get(key)
    state = store.load(store.latest())["training"]  # type: ignore[arg-type]
    found["state"] = {name: each.numpy().tobytes() for name, each in state["networks"].items()}
    for name in ("metrics", "validation"):
        rows = store.table(name).to_pylist()  # type: ignore[union-attr]
        found[name] = [{key: row[key] for key in row if key not in ("time", "images_per_second")} for row in rows]
    return found


def test_a_killed_training_ends_with_the_same_bytes(
    new_training: NewTraining, generator_file: str, tmp_path: Path
) -> None:
    """Networks, batch statistics, slow weights, curves and sheets; and the file is what refiners read."""
    one, other = new_training(output=str(tmp_path / "one")), new_training()
    with pytest.raises(Killed):
        train(one, kill_at=3)
    assert train(one).resumed_at == 2
    train(other)
    found = results(one)
    assert found == results(other)
    assert {"hfgi.safetensors", BEST_KEY, "sheets/step-00000005.png"} <= found.keys()
    rows = found["metrics"]
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert [round(row["learning_rate"], 5) for row in rows] == [0.01, 0.00667, 0.00333]
    assert {"loss", "l2", "lpips", "identity", "alignment", "gradient_norm"} <= rows[0].keys()
    assert prepare_training(one).is_finished

    loaded = load_refiner_networks(str(tmp_path / "one" / "hfgi.safetensors"), load_generator(generator_file).config)
    assert (loaded.kind, loaded.generator_digest) == ("hfgi", load_generator(generator_file).digest)
    assert loaded.encoder_digest == load_encoder(one.encoder).digest
    data = (tmp_path / "one" / "hfgi.safetensors").read_bytes()
    assert b"HFGI_{Mine}" in data and b"starts_without_effect" in data


def test_codes_are_those_of_the_encoder_in_eval_mode_which_stays_as_it_is(new_training: NewTraining) -> None:
    spec = new_training()
    loaded, encoder = spec.generator.load(), load_encoder(spec.encoder)
    before = {name: each.clone() for name, each in encoder.encoder.state_dict().items()}
    training = assemble(spec, loaded, encoder, CPU)
    images = torch.rand(4, *(loaded.config.image_channels, 32, 32), generator=torch.Generator().manual_seed(0)) * 2 - 1
    logged = training.advance(images, range(4))

    again = load_encoder(spec.encoder).encoder
    plain = HfgiTraining(
        build_first_networks(spec, loaded),
        loaded.generator,
        training.training.perceptual,
        training.training.identity,
        spec.method.settings,
        seed=spec.seed,
    )
    codes = EncoderEmbedder(loaded.generator, again, EncoderSettings()).codes_of_view(images)
    assert logged == pytest.approx(plain.advance(images, codes, range(4)), rel=1e-5)
    assert isinstance(training, TrainingOnCodes) and training.step == 1
    assert all(torch.equal(each, before[name]) for name, each in encoder.encoder.state_dict().items())


def test_a_training_begins_at_the_plain_image_where_it_is_asked_to(new_training: NewTraining) -> None:
    spec = new_training()
    loaded = spec.generator.load()
    images = torch.zeros(4, loaded.config.image_channels, 32, 32)
    training = assemble(spec, loaded, load_encoder(spec.encoder), CPU)
    plain = loaded.generator.synthesize(training.embedder.codes_of_view(images))
    torch.testing.assert_close(training.reconstruct(images), plain)
    other = assemble(new_training(starts_without_effect=False), loaded, load_encoder(spec.encoder), CPU)
    assert (other.reconstruct(images) - plain).abs().max() > 1e-3
    one, same = (build_first_networks(spec, loaded).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], same[name]) for name in one)


# --- what is refused ----------------------------------------------------------------------------------


def refused(spec: RefinerTrainingSpec, error: type[Exception], match: str) -> None:
    """Refused, and nothing written."""
    with pytest.raises(error, match=match):
        prepare_training(spec)
    assert Store.from_url(spec.output).keys() == []


def test_an_encoder_that_is_not_there_or_another_generators_is_refused(
    new_training: NewTraining, encoder_file: str, tmp_path: Path
) -> None:
    refused(new_training(encoder="nowhere.pt"), CheckpointError, "nowhere.pt.*does not exist")
    path = tmp_path / "other.safetensors"
    path.write_bytes(encode_encoder(load_encoder(encoder_file).encoder, generator_digest="0" * 64))
    refused(new_training(encoder=str(path)), CheckpointError, "of generator 000")


def test_an_encoder_that_reads_images_once_is_not_asked_twice(new_training: NewTraining) -> None:
    refused(
        new_training(embedding=EncoderSettings(2)), ConfigError, "num_passes is 2, and this encoder reads the image"
    )


def test_views_that_the_encoder_does_not_read_are_refused(new_training: NewTraining) -> None:
    spec = new_training()
    other = replace(spec, method=spec.method.with_settings({"view_side": 64}))
    refused(
        other, ConfigError, r"view_side: 64 gives images of \(64, 64\) pixels.*reads \(32, 32\).*leave view_side out"
    )


def test_other_codes_are_another_training(new_training: NewTraining, generator_file: str, tmp_path: Path) -> None:
    spec = new_training()
    prepare_training(spec)
    loaded = load_generator(generator_file)
    encoder = Encoder(EncoderConfig.for_generator(loaded.config, heads="direct", backbone="small"))
    path = tmp_path / "other.safetensors"
    path.write_bytes(encode_encoder(encoder, generator_digest=loaded.digest))
    for changed, words in (
        (replace(spec, encoder=str(path)), "encoder is"),
        (replace(spec, method=spec.method.with_settings({"distortion": 0.1})), "training.distortion is 0.15 there"),
        (replace(spec, method=spec.method.with_settings({"num_steps": 6})), "training.num_steps is 5 there, 6 here"),
    ):
        with pytest.raises(OtherRunError, match=f"{words}.*name another output"):
            prepare_training(changed)
    with pytest.raises(CheckpointError, match=r"holds encoder .* was made with .*put those weights back"):
        train_networks(replace(spec, encoder=str(path)), device=CPU)
