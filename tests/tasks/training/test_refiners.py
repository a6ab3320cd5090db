"""Networks of a refiner in training: the store and the loop of encoders, and what is different about them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from lsap_archive import Store
from lsap_core.encoders import Encoder, EncoderConfig
from lsap_core.encoders.backbone import ResNet34Trunk
from lsap_core.errors import CheckpointError, ConfigError
from lsap_core.generators.checkpoints.discriminators import to_nvlabs_discriminator
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.discriminator import Discriminator
from lsap_core.inversion.by_encoder import EncoderEmbedder, EncoderSettings
from lsap_core.presets import REFINER_TRAININGS, recorded
from lsap_core.refinement.hfgi_networks import HfgiNetworks
from lsap_core.training.hfgi_step import HfgiTraining
from lsap_core.training.sfe_settings import SFE_INVERTER
from tasks.training.loop import TrainingOutcome, train_networks
from tasks.training.plan import prepare_training
from tasks.training.refiners import RefinerTrainingSpec, assemble, build_first_networks
from tasks.training.store import BEST_KEY, OtherRunError, TrainingStore
from tasks.training.trainable import TRAINABLE, RefinerSteps
from tasks.weights.encoders import LoadedEncoder, encode_encoder, load_encoder
from tasks.weights.files import read_safetensors
from tasks.weights.generators import GeneratorFile, LoadedGenerator, load_generator, save_generator
from tasks.weights.networks import NetworkChoice
from tasks.weights.refiners import load_refiner_networks

SETTINGS = {"batch_size": 4, "num_steps": 5, "decay_steps": 3, "learning_rate": 1e-2}
SFE = {"backbone": "small", "adversarial_weight": 0.0, "fade_steps": 2}
OWN: dict[str, dict[str, Any]] = {
    "hfgi": {"widths": "small", "starts_without_effect": True},
    "hyperstyle": {"backbone": "small", "num_passes": 1},
    "sfe_inverter": SFE,
    "sfe": {**SFE, "edits": {"first": (-1.0, 1.0)}},
}
CPU = torch.device("cpu")

NewTraining = Callable[..., RefinerTrainingSpec]


class Killed(BaseException):
    """Not an Exception: nothing on the way may take it for one."""


@pytest.fixture(scope="module")
def generator_file(generator_file: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tests' generator with a mean code, from which codes of StyleFeatureEditor start."""
    generator = load_generator(generator_file).generator
    generator.mapping.w_avg.copy_(torch.linspace(-0.5, 0.5, generator.config.w_dim))
    path = tmp_path_factory.mktemp("generator") / "with_mean.safetensors"
    save_generator(generator, str(path))
    return str(path)


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
def new_training(generator_file: str, encoder_file: str, tmp_path_factory: pytest.TempPathFactory) -> NewTraining:
    directions = {"first": str(tmp_path_factory.mktemp("directions") / "first.pt")}
    torch.save(torch.eye(load_generator(generator_file).config.w_dim)[0], directions["first"])

    def new(refiner: str = "hfgi", *, settings: Mapping[str, Any] | None = None, **changes: Any) -> RefinerTrainingSpec:
        values: dict[str, Any] = {
            "output": f"memory://training-{uuid.uuid4().hex}",
            "source": "digits:train[:18]",
            "generator": GeneratorFile(generator_file),
            "method": REFINER_TRAININGS[refiner].with_settings({**SETTINGS, **OWN[refiner], **(settings or {})}),
            "networks": NetworkChoice("digits-features", "digits-features", identity="digits-features"),
            "encoder": encoder_file if TRAINABLE[refiner].has_encoder else None,
            "encoder_name": "mine",
            "embedding": EncoderSettings(),
            "directions": directions,
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


def begin(spec: RefinerTrainingSpec, loaded: LoadedGenerator, encoder: LoadedEncoder) -> RefinerSteps:
    """The training before its first step."""
    return assemble(spec, loaded, encoder, CPU, build_first_networks(spec, loaded)[0])


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
    found["state"] = flat(store.load(store.latest())["training"])  # type: ignore[arg-type]
    for name in ("metrics", "validation"):
        rows = store.table(name).to_pylist()  # type: ignore[union-attr]
        found[name] = [{key: row[key] for key in row if key not in ("time", "images_per_second")} for row in rows]
    return found


def flat(state: Any) -> Any:
    """A state of nested dicts and lists with bytes in the place of tensors."""
    if isinstance(state, torch.Tensor):
        return state.numpy().tobytes()
    if isinstance(state, Mapping):
        return {name: flat(each) for name, each in state.items()}
    return [flat(each) for each in state] if isinstance(state, list | tuple) else state


@pytest.fixture(scope="module")
def inverter_file(new_training: NewTraining, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An Inverter as a training gives it: what the second phase starts from."""
    spec = new_training("sfe_inverter", settings={"num_steps": 1, "decay_steps": 0})
    path = tmp_path_factory.mktemp("inverter") / "sfe_inverter.safetensors"
    path.write_bytes(spec.probe(CPU).file())
    return str(path)


@pytest.fixture(scope="module")
def hfgi_networks(new_training: NewTraining, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("hfgi") / "hfgi.safetensors"
    path.write_bytes(new_training().probe(CPU).file())
    return str(path)


def files_of(refiner: str, inverter_file: str) -> dict[str, str]:
    return {"inverter": inverter_file} if refiner == "sfe" else {}


TERMS = {
    "hfgi": {"l2", "lpips", "identity", "alignment"},
    "hyperstyle": {"l2", "lpips", "identity"},
    "sfe_inverter": {"l2", "lpips", "identity", "feature"},
    "sfe": {"l2", "lpips", "identity"},
}
TITLES = {
    "hfgi": "HFGI_{Mine}",
    "hyperstyle": "HyperStyle_{Mine}",
    "sfe_inverter": "StyleFeatureEditor's Inverter",
    "sfe": "StyleFeatureEditor_{Mine}",
}


@pytest.mark.parametrize("refiner", TRAINABLE)
def test_a_killed_training_ends_with_the_same_bytes(
    refiner: str, new_training: NewTraining, generator_file: str, inverter_file: str, tmp_path: Path
) -> None:
    """Networks, batch statistics, slow weights, curves and sheets; and the file is what refiners read."""
    files = files_of(refiner, inverter_file)
    one, other = new_training(refiner, files=files, output=str(tmp_path / "one")), new_training(refiner, files=files)
    with pytest.raises(Killed):
        train(one, kill_at=3)
    assert train(one).resumed_at == 2
    train(other)
    found = results(one)
    assert found == results(other)
    assert {f"{refiner}.safetensors", BEST_KEY, "sheets/step-00000005.png"} <= found.keys()
    rows = found["metrics"]
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert [round(row["learning_rate"], 5) for row in rows] == [0.01, 0.00667, 0.00333]
    assert {"loss", *TERMS[refiner], "gradient_norm"} <= rows[0].keys()
    assert {"loss", *TERMS[refiner]} <= found["validation"][0].keys()
    assert prepare_training(one).is_finished

    generator, path = load_generator(generator_file), tmp_path / "one" / f"{refiner}.safetensors"
    loaded = load_refiner_networks(str(path), generator.config)
    assert (loaded.kind, loaded.generator_digest) == (TRAINABLE[refiner].form.kind, generator.digest)
    assert loaded.encoder_digest == (None if one.encoder is None else load_encoder(one.encoder).digest)
    _, metadata = read_safetensors(path.read_bytes())
    options = json.loads(metadata["options"])
    assert (metadata["title"], options["method"], options["step"]) == (TITLES[refiner], refiner, 5)
    assert options["settings"] == json.loads(json.dumps(recorded(one.method.settings)))


def test_codes_are_those_of_the_encoder_in_eval_mode_which_stays_as_it_is(new_training: NewTraining) -> None:
    spec = new_training()
    loaded, encoder = spec.generator.load(), load_encoder(spec.encoder)
    before = {name: each.clone() for name, each in encoder.encoder.state_dict().items()}
    training = begin(spec, loaded, encoder)
    images = torch.rand(4, *(loaded.config.image_channels, 32, 32), generator=torch.Generator().manual_seed(0)) * 2 - 1
    logged = training.advance(images, range(4))

    again = load_encoder(spec.encoder).encoder
    networks, _ = build_first_networks(spec, loaded)
    assert isinstance(networks, HfgiNetworks)
    plain = HfgiTraining(
        networks,
        loaded.generator,
        training.training.perceptual,
        training.training.identity,
        spec.method.settings,
        seed=spec.seed,
    )
    codes = EncoderEmbedder(loaded.generator, again, EncoderSettings()).codes_of_view(images)
    assert logged == pytest.approx(plain.advance(images, codes, range(4)), rel=1e-5)
    assert training.step == 1
    assert all(torch.equal(each, before[name]) for name, each in encoder.encoder.state_dict().items())


def test_a_training_begins_at_the_plain_image_where_it_is_asked_to(new_training: NewTraining) -> None:
    spec = new_training()
    loaded = spec.generator.load()
    images = torch.zeros(4, loaded.config.image_channels, 32, 32)
    training = begin(spec, loaded, load_encoder(spec.encoder))
    assert training.codes is not None
    plain = loaded.generator.synthesize(training.codes(images))
    torch.testing.assert_close(training.reconstruct(images), plain)
    other = begin(new_training(settings={"starts_without_effect": False}), loaded, load_encoder(spec.encoder))
    assert (other.reconstruct(images) - plain).abs().max() > 1e-3
    one, same = (build_first_networks(spec, loaded)[0].state_dict() for _ in range(2))
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


def test_files_that_a_training_needs_are_asked_for_and_others_refused(
    new_training: NewTraining, hfgi_networks: str, inverter_file: str, tmp_path: Path
) -> None:
    inverter = {"inverter": inverter_file}
    for spec, error, words in (
        (new_training("sfe"), ConfigError, "inverter: no file is named.*sfe_inverter"),
        (new_training("sfe", files={"inverter": hfgi_networks}), CheckpointError, "holds a HfgiNetworks; wanted"),
        (new_training("hfgi", files=inverter), ConfigError, "inverter: the training of HFGI starts from no such file"),
        (
            new_training("sfe", files=inverter, settings={"backbone": "iresnet_50"}),
            ConfigError,
            "backbone is small, and training.backbone is iresnet_50",
        ),
        (
            new_training("sfe", files=inverter, settings={"edits": {"smile": (1.0,)}}),
            ConfigError,
            r"training.edits.smile: no direction is called so; wanted some of first.*directions.smile=",
        ),
        (new_training("sfe", files=inverter, settings={"edits": {}}), ConfigError, "there are no edits"),
        (
            new_training("sfe_inverter", settings={"adversarial_weight": 0.01}),
            ConfigError,
            "discriminator: no file is named, and adversarial_weight is 0.01.*or training.adversarial_weight=0",
        ),
        (
            new_training("sfe_inverter", files={"discriminator": inverter_file}),
            ConfigError,
            "discriminator: a file is named, and adversarial_weight is 0",
        ),
        (
            new_training("hyperstyle", files={"backbone_weights": hfgi_networks}),
            CheckpointError,
            "backbone_weights .*wanted a .pth of torchvision's ResNet-34",
        ),
    ):
        refused(spec, error, words)


def test_networks_start_from_a_trained_backbone(tmp_path: Path) -> None:
    with torch.device("meta"):
        names = ResNet34Trunk(in_channels=3).state_dict()
    trained = {name: each for name, each in names.items() if "num_batches" not in name and name != "relu.weight"}
    path = str(tmp_path / "resnet34.pth")
    torch.save({name: torch.full(each.shape, 0.5) for name, each in trained.items()}, path)
    settings = replace(REFINER_TRAININGS["hyperstyle"].settings, layers=(9,))
    generator = GeneratorConfig(32, (8, 8, 8, 4))
    network, notes = TRAINABLE["hyperstyle"].first(settings, generator, {"backbone_weights": path}, 0)
    assert (network.backbone.body[15].conv2.weight == 0.5).all() and len(notes) == 2
    assert (network.backbone.conv1.weight[:, :3] == 0.5).all()
    with pytest.raises(CheckpointError, match=r"backbone_weights .*resnet34.pth: the backbone starts from iresnet50-"):
        TRAINABLE["sfe_inverter"].first(SFE_INVERTER, generator, {"backbone_weights": path}, 0)


def test_a_discriminator_is_trained_beside_the_inverter(
    new_training: NewTraining, generator_file: str, tmp_path: Path
) -> None:
    """From a full file of StyleFeatureEditor; one of other images is refused."""

    def write(config: GeneratorConfig, name: str) -> dict[str, str]:
        state = to_nvlabs_discriminator(Discriminator(config), config.resolution)
        named = {f"discriminator.{key}": tensor for key, tensor in state.items()}
        torch.save({"state_dict": named}, tmp_path / name)
        return {"discriminator": str(tmp_path / name)}

    config = load_generator(generator_file).config
    files = write(config, "mine.pt")
    settings = {"adversarial_weight": 0.01, "adversarial_start": 0, "r1_every": 1}
    opened = new_training("sfe_inverter", files=files, settings=settings).probe(CPU)
    images = torch.rand(4, config.image_channels, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    logged = opened.training.advance(images, range(4))
    assert {"adversarial", "discriminator", "r1"} <= logged.keys()
    others = write(GeneratorConfig(16, (8, 8, 8)), "others.pt")
    refused(
        new_training("sfe_inverter", files=others, settings=settings),
        CheckpointError,
        "others.pt: it looks at images of 16 pixels with 3 channels; wanted 32 pixels with 1",
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
