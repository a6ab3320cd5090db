"""What is refused before a training begins, in words that say what was found, what was wanted and what to do."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from domains.digits.data import load_split
from lsap_archive import Store
from lsap_core.encoders import Encoder, EncoderConfig
from lsap_core.errors import CheckpointError, ConfigError, MissingWeightsError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.presets import training
from tasks.archived.anchors import AnchorOptions
from tasks.errors import SourceError
from tasks.training.encoders import EncoderTrainingSpec, build_first_encoder
from tasks.training.plan import prepare_training
from tasks.training.store import OtherRunError, TrainingStore
from tasks.weights.encoders import encode_encoder
from tasks.weights.generators import GeneratorFile, load_generator, save_generator
from tasks.weights.networks import NetworkChoice
from tasks.weights.published import Published

NETWORKS = NetworkChoice("digits-features", "digits-features", identity="digits-features")

NewTraining = Callable[..., EncoderTrainingSpec]


@pytest.fixture
def new_training(generator_file: str) -> NewTraining:
    def new(**changes: Any) -> EncoderTrainingSpec:
        values: dict[str, Any] = {
            "output": f"memory://training-{uuid.uuid4().hex}",
            "source": "digits:train[:20]",
            "generator": GeneratorFile(generator_file),
            "method": training("lsap_e", batch_size=4, num_steps=2),
            "networks": NETWORKS,
            "anchor": AnchorOptions(num_samples=16),
            "validation_images": 5,
            "backbone": "small",
        }
        return EncoderTrainingSpec(**{**values, **changes})

    return new


def refused(spec: EncoderTrainingSpec, error: type[Exception], match: str) -> None:
    """Refused, and nothing written."""
    with pytest.raises(error, match=match):
        prepare_training(spec)
    assert Store.from_url(spec.output).keys() == []


def test_a_prepared_folder_holds_what_workers_need(new_training: NewTraining) -> None:
    spec = new_training()
    prepared = prepare_training(spec)
    assert (prepared.num_images, prepared.num_held_out, prepared.step, prepared.is_finished) == (15, 5, 0, False)
    store = TrainingStore(spec.output)
    train, held_out = (set(store.listing(name)["image_id"].to_pylist()) for name in ("train", "validation"))
    assert (len(train), len(held_out), len(train | held_out)) == (15, 5, 20)
    digest = spec.generator.load().digest
    assert store.identity()["generator"] == digest
    anchor = store.anchor(spec.anchor.digest(digest))
    assert anchor is not None and anchor.num_samples == 16
    again = Store.from_url(spec.output)
    before = {key: again.get(key) for key in again.sizes()}
    assert prepare_training(spec) == prepared
    assert {key: again.get(key) for key in again.keys()} == before  # noqa: SIM118


def test_a_dry_preparation_writes_nothing(new_training: NewTraining) -> None:
    spec = new_training()
    assert prepare_training(spec, dry=True).num_images == 15
    assert Store.from_url(spec.output).keys() == []


# --- images -------------------------------------------------------------------------------------------


def test_fewer_images_than_a_batch_are_refused(new_training: NewTraining) -> None:
    spec = new_training(source="digits:train[:8]")
    refused(
        spec, SourceError, r"3 images besides the 5 that are held out.* a batch is 4: .*batch_size or validation_images"
    )


def test_validation_images_that_are_trained_on_are_refused(new_training: NewTraining) -> None:
    spec = new_training(validation_source="digits:train[10:30]", validation_images=20)
    refused(
        spec, SourceError, r"10 images, such as digits:train/0010-0, are in .* validated on images that they are not"
    )


def test_images_of_another_shape_are_refused(new_training: NewTraining, tmp_path: Path) -> None:
    for number in range(10):
        Image.fromarray(load_split("train").images[number][:, :24]).save(tmp_path / f"{number}.png")
    refused(new_training(source=str(tmp_path)), SourceError, r"24x32 pixels, a square was wanted.*fit: crop")


# --- weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"<!doctype html>", "a web page"),
        ({"conv1.weight": torch.zeros(64, 3, 7, 7)}, "model_ir_se50.pth"),
        ({"input_layer.0.weight": torch.zeros(64, 3, 3, 3)}, "tensors differ"),
    ],
)
def test_a_backbone_of_the_wrong_kind_is_refused(
    content: Any, words: str, new_training: NewTraining, tmp_path: Path
) -> None:
    path = tmp_path / "backbone.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    spec = new_training(backbone="ir_se_50", backbone_weights=str(path))
    with pytest.raises(CheckpointError, match=rf"{path}.*{words}"):
        build_first_encoder(spec, _Sized(GeneratorConfig(8, (8, 8), w_dim=8)), None)  # type: ignore[arg-type]


class _Sized:
    """As much of a generator as an encoder is made for."""

    def __init__(self, config: GeneratorConfig):
        self.config = config


def test_a_small_backbone_has_no_weights_to_start_from(new_training: NewTraining, tmp_path: Path) -> None:
    torch.save({}, tmp_path / "backbone.pth")
    spec = new_training(backbone_weights=str(tmp_path / "backbone.pth"))
    refused(spec, CheckpointError, r'a "small" backbone has no trained weights')


def test_an_identity_network_that_is_not_there_or_does_not_fit_is_refused(
    new_training: NewTraining, tmp_path: Path
) -> None:
    networks = replace(NETWORKS, identity="arcface", published=Published(tmp_path))
    refused(new_training(networks=networks), (MissingWeightsError, ConfigError), "model_ir_se50.pth|arcface")  # type: ignore[arg-type]


def test_an_encoder_of_another_generator_or_kind_is_refused(
    new_training: NewTraining, generator_file: str, tmp_path: Path
) -> None:
    config = load_generator(generator_file).config
    sizes = EncoderConfig.for_generator(config, heads="offsets", backbone="small")
    own = load_generator(generator_file).digest
    for name, heads, digest in (("own", "offsets", own), ("other", "offsets", "0" * 64), ("psp", "direct", own)):
        encoder = Encoder(replace(sizes, heads=heads))  # type: ignore[arg-type]
        (tmp_path / f"{name}.safetensors").write_bytes(encode_encoder(encoder, generator_digest=digest))
    assert prepare_training(new_training(init_from=str(tmp_path / "own.safetensors"))).num_images == 15
    refused(new_training(init_from=str(tmp_path / "other.safetensors")), CheckpointError, "of generator 000")
    refused(
        new_training(init_from=str(tmp_path / "psp.safetensors")), CheckpointError, "heads is direct, wanted offsets"
    )


def test_another_training_in_the_folder_is_refused_by_the_field(
    new_training: NewTraining, tmp_path: Path, generator_file: str
) -> None:
    spec = new_training()
    prepare_training(spec)
    other = str(tmp_path / "other.safetensors")
    generator = load_generator(generator_file).generator
    torch.nn.init.constant_(generator.synthesis.const, 0.5)
    save_generator(generator, other)
    for changed, words in (
        (replace(spec, seed=1), "seed is 0 there, 1 here"),
        (replace(spec, method=spec.method.with_settings({"sncd_weight": 0.25})), "training.sncd_weight is 0.5 there"),
        (replace(spec, source="digits:train[:19]"), "images is .15 images"),
        (replace(spec, generator=GeneratorFile(other)), "generator is"),
        (replace(spec, method=training("psp", batch_size=4, num_steps=2)), "method is .lsap_e. there"),
    ):
        with pytest.raises(OtherRunError, match=f"{words}.*name another output"):
            prepare_training(changed)


# --- the first encoder --------------------------------------------------------------------------------


def test_the_seed_decides_the_first_encoder_and_codes_start_from_the_mean(
    new_training: NewTraining, generator_file: str
) -> None:
    spec, loaded = new_training(), load_generator(generator_file)
    prepare_training(spec)
    anchor = TrainingStore(spec.output).anchor(spec.anchor.digest(loaded.digest))
    one, same, other = (
        build_first_encoder(replace(spec, seed=seed), loaded, anchor)[0].state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    assert anchor is not None and torch.equal(one["w_avg"][3], anchor.w_avg)


def test_a_large_backbone_without_weights_is_warned_of(new_training: NewTraining) -> None:
    sized = _Sized(GeneratorConfig(256, (8,) * 7, w_dim=8))
    _, (note,) = build_first_encoder(new_training(backbone="resnet_34"), sized, None)  # type: ignore[arg-type]
    assert "random numbers" in note and "backbone_weights" in note
    assert build_first_encoder(new_training(), sized, None)[1] == ()  # type: ignore[arg-type]
