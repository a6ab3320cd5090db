"""Training StyleFeatureEditor: terms of the published program, steps that resume, and steps that are not taken."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsap_core.editing import Direction, along
from lsap_core.errors import CheckpointError, ConfigError, ShapeError, TrainingDivergedError
from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.generators.checkpoints import build_generator, canonical_shapes, from_rosinality, to_rosinality
from lsap_core.generators.checkpoints.discriminators import from_nvlabs_discriminator, nvlabs_discriminator_name
from lsap_core.generators.discriminator import Discriminator
from lsap_core.perceptual.features import FeatureDistance, FeatureNet, FeatureNetConfig
from lsap_core.refinement.sfe_networks import ContentLayerDeepFast, SfeConfig, SfeNetworks
from lsap_core.training.image_adversary import ImageAdversary
from lsap_core.training.sfe_edits import PUBLISHED_CHANNELS, PUBLISHED_POWERS, TrainingEdit, code_edit, style_edit
from lsap_core.training.sfe_phase import SfeTrainingParts
from lsap_core.training.sfe_settings import (
    SFE_EDITOR,
    SFE_INVERTER,
    SfeTrainingSettings,
)
from lsap_core.training.sfe_step import EditorTraining, InverterTraining

SMALL = GeneratorConfig(32, (8, 8, 8, 8), z_dim=6, w_dim=12, num_mapping_layers=2)
SETTINGS = SfeTrainingSettings(batch_size=4, adversarial_start=2, fade_steps=4, r1_every=2, learning_rate=1e-3)
WITHOUT_NETWORKS = SfeTrainingSettings(lpips_weight=0, identity_weight=0, batch_size=1)


class Given(nn.Module):
    """A backbone, or an encoder, that answers what it was given."""

    def __init__(self, codes: Tensor, content: Tensor | None = None):
        super().__init__()
        self.codes, self.content = codes, content

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.codes, self.content

    def codes_of_view(self, view: Tensor) -> Tensor:
        return self.codes


class Identity:
    """Unit embeddings of a small network."""

    def __init__(self, network: FeatureNet):
        self.network = network

    def embed(self, images: Tensor) -> Tensor:
        return F.normalize(self.network.embed(images), dim=1)


# --- the published numbers ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(reference: Callable[[str], Any], fill: ModuleType) -> SfeTrainingParts:
    """Parts of the published run, whose backbone and encoder answer given codes."""
    numbers = reference("sfe_losses")
    config = GeneratorConfig(128, (512, 512, 512, 512, 256, 128))
    zeros = {name: torch.zeros(shape) for name, shape in canonical_shapes(config).items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in to_rosinality(config, zeros).items()}
    generator = build_generator(from_rosinality(fill.fill_dict(shapes, "stylegan2"), numbers["latent_avg"])).freeze()
    networks = SfeNetworks(SfeConfig("small", 12, 512, 3, input_side=128, feature_channels=512)).eval()
    content = torch.from_numpy(fill.array("in/sfe_losses/content", (1, 256, 64, 64), 0.8))
    networks.inverter.fs_backbone = Given(numbers["codes"], content)
    networks.inverter.fuser = fusing(fill, "fuser:")
    networks.editor = fusing(fill, "editor:")
    with torch.device("meta"):
        names = Discriminator(GeneratorConfig(128, (512, 256, 128, 64, 32, 16))).state_dict()
    of_discriminator = {nvlabs_discriminator_name(name, 128): tuple(value.shape) for name, value in names.items()}
    discriminator = from_nvlabs_discriminator(fill.fill_dict(of_discriminator, "stylegan2_ada", "disc:"))
    return SfeTrainingParts(networks, generator, Unused(), discriminator=discriminator)


def fusing(fill: ModuleType, salt: str) -> ContentLayerDeepFast:
    network = fill.fill_module(ContentLayerDeepFast(2, 512, 256), "plain", salt=salt).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("body.4.weight"):
                parameter *= 0.25
    return network


class Unused:
    """A perceptual network that is not asked."""

    def features(self, images: Tensor) -> list[Tensor]:
        raise AssertionError

    def distance(self, features: list[Tensor], target_features: list[Tensor]) -> Tensor:
        raise AssertionError


@torch.no_grad()
def test_terms_of_the_first_phase_are_the_published_ones(
    reference: Callable[[str], Any], fill: ModuleType, published: SfeTrainingParts
) -> None:
    numbers = reference("sfe_losses")
    images = fill.image_to_float(numbers["sfe_dev_c"].numpy())
    training = InverterTraining(published, WITHOUT_NETWORKS)
    terms, made = training.terms(images, 2500)
    numbers.check("phase1_y_hat_sub", made[:, :, ::4, ::4])  # every 8th of 256
    numbers.check("phase1_x_sub", torch.cat([images, images])[:, :, ::4, ::4])
    l2, feature = terms["l2"].mean(), terms["feature"].mean()
    numbers.check("phase1", torch.stack([l2, feature, l2 + 0.01 * feature]))
    numbers.check("phase1_each", (made - images).square().mean(dim=(1, 2, 3)))


def test_terms_of_the_second_phase_are_the_published_ones(
    reference: Callable[[str], Any],
    fill: ModuleType,
    published: SfeTrainingParts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers, generator = reference("sfe_losses"), published.generator
    images = fill.image_to_float(numbers["sfe_dev_c"].numpy())
    edit = code_edit("age", [5.0], generator, lambda power: along(Direction("age", numbers["direction"]), power / 2))
    guide = Given(numbers["codes_e4e"] + numbers["latent_avg"])
    training = EditorTraining(published, guide, [edit], WITHOUT_NETWORKS, seed=0)
    compared: list[Tensor] = []
    terms_of = training._training.image_terms

    def remember(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        compared.extend([torch.cat([made for made, _ in pairs]), torch.cat([target for _, target in pairs])])
        return type(terms_of).averaged(terms_of, pairs)

    monkeypatch.setattr(terms_of, "averaged", remember)
    terms, inversion = training.terms(images, 16)
    made, targets = compared
    numbers.check("phase2_y_hat_sub", made[:, :, ::4, ::4])
    numbers.check("phase2_x_sub", targets[:, :, ::4, ::4])
    adversary = ImageAdversary(published.discriminator, learning_rate=1e-4, r1_gamma=10.0, r1_every=16)
    numbers.check("phase2_fake_preds", adversary.network(inversion)[:, None])
    l2, adversarial = terms["l2"].mean(), adversary.refiner_loss(inversion).mean()
    numbers.check("phase2", torch.stack([l2, adversarial, l2 + 0.01 * adversarial]))
    losses = adversary.learned(images, inversion, step=300_016)
    numbers.check("phase2_disc", torch.stack([losses["discriminator"], losses["r1"]]))
    assert "r1" not in adversary.learned(images, inversion, step=300_015)


# --- steps -------------------------------------------------------------------------------------------


def make_parts(config: GeneratorConfig = SMALL) -> SfeTrainingParts:
    """Small random networks, the same ones at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = Generator(config)
        with torch.no_grad():
            for layer in generator.synthesis.conv_layers():
                layer.noise_strength.fill_(0.1)
            generator.mapping.w_avg.copy_(generator.map(torch.randn(200, config.z_dim)).mean(dim=0))
        networks = SfeNetworks(SfeConfig.for_generator(config, backbone="small")).eval()
        sizes = FeatureNetConfig(32, config.image_channels, channels=(4, 6, 8, 8), embedding_dim=8)
        network = FeatureNet(sizes).requires_grad_(False).eval()
        discriminator = Discriminator(config)
    return SfeTrainingParts(networks, generator.freeze(), FeatureDistance(network), Identity(network), discriminator)


def make_images(parts: SfeTrainingParts, step: int, *, size: int = 4) -> Tensor:
    generator = parts.generator
    with torch.no_grad():
        z = torch.randn(size, generator.config.z_dim, generator=torch.Generator().manual_seed(step))
        return generator.synthesize(generator.map(z)).clamp(-1, 1)


class Shrinking:
    """An encoder whose codes are the first pixels of an image."""

    def __init__(self, generator: Generator):
        self.generator = generator

    def codes_of_view(self, view: Tensor) -> Tensor:
        config = self.generator.config
        return self.generator.mapping.w_avg + view.flatten(1)[:, : config.num_ws * config.w_dim].unflatten(
            1, (config.num_ws, config.w_dim)
        )


def make_edits(parts: SfeTrainingParts) -> list[TrainingEdit]:
    direction = Direction("first", torch.eye(parts.generator.config.w_dim)[:1])
    return [
        code_edit("codes", [-1.0, 1.0], parts.generator, lambda power: along(direction, power)),
        style_edit("styles", [0.2], parts.generator, [(3, 1), (0, 2)]),
    ]


def make_training(phase: str, settings: SfeTrainingSettings = SETTINGS, **parts_changes: Any) -> Any:
    parts = replace(make_parts(), **parts_changes)
    if phase == "inverter":
        return InverterTraining(parts, settings)
    settings = replace(settings, adversarial_start=0)
    return EditorTraining(parts, Shrinking(parts.generator), make_edits(parts), settings, seed=3)


PHASES = pytest.mark.parametrize("phase", ["inverter", "editor"])


def trained_part(training: Any, phase: str) -> nn.Module:
    networks = training.parts.networks
    return networks.inverter if phase == "inverter" else networks.editor


@PHASES
def test_a_step_moves_its_part_alone(phase: str) -> None:
    training = make_training(phase)
    parts = training.parts
    before = copy.deepcopy(parts)
    logged = [training.advance(make_images(parts, step)) for step in range(3)]
    assert training.step == 3
    other = "editor" if phase == "inverter" else "inverter"
    for name, tensor in parts.networks.named_parameters():
        is_equal = torch.equal(tensor, dict(before.networks.named_parameters())[name])
        assert is_equal == name.startswith(other), name
    for name, tensor in getattr(parts.networks, other).state_dict().items():  # batch statistics too
        assert torch.equal(tensor, getattr(before.networks, other).state_dict()[name]), name
    for name, tensor in parts.generator.state_dict().items():
        assert torch.equal(tensor, before.generator.state_dict()[name]), name
    assert not any(parameter.grad is not None for parameter in parts.generator.parameters())
    assert not any(network.training for network in parts.networks.modules())
    terms = {"l2", "lpips", "identity", "loss", "gradient_norm"} | ({"feature"} if phase == "inverter" else set())
    first = set() if phase == "inverter" else {"adversarial", "discriminator"}
    assert logged[0].keys() == terms | first
    assert logged[1].keys() == terms | first | ({"r1"} if first else set())
    assert logged[2].keys() == terms | {"adversarial", "discriminator"}
    weighed = sum(getattr(SETTINGS, f"{name}_weight") * logged[2][name] for name in terms - {"loss", "gradient_norm"})
    assert logged[2]["loss"] == pytest.approx(weighed + 0.01 * logged[2]["adversarial"], rel=1e-5)


def test_the_editor_of_cars_learns_with_the_block_that_reduces_its_shift() -> None:
    parts = make_parts()
    config = SfeConfig.for_generator(SMALL, backbone="small", has_finer_shift=True)
    training = make_training("editor", networks=SfeNetworks(config).eval())
    reducer = training.parts.networks.reducer
    before = reducer.conv1.weight.clone()
    training.advance(make_images(parts, 0))
    assert not torch.equal(reducer.conv1.weight, before) and not reducer.training
    assert {name.partition(".")[0] for name in training.state_dict()["trained"]} == {"editor", "reducer"}


@PHASES
def test_a_training_that_was_saved_goes_on_bit_for_bit(phase: str) -> None:
    whole = make_training(phase)
    for step in range(4):
        whole.advance(make_images(whole.parts, step))
    first = make_training(phase)
    for step in range(2):
        first.advance(make_images(first.parts, step))
    second = make_training(phase)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in range(2, 4):
        second.advance(make_images(second.parts, step))
    for one, other in (
        (whole.parts.networks, second.parts.networks),
        (whole.parts.discriminator, second.parts.discriminator),
    ):
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name


@PHASES
def test_a_step_without_numbers_changes_nothing(phase: str) -> None:
    training = make_training(phase)
    for step in range(3):
        training.advance(make_images(training.parts, step))
    before = copy.deepcopy(training.state_dict())
    images = make_images(training.parts, 3)
    images[2, 0, 0, 0] = torch.nan
    with pytest.raises(TrainingDivergedError, match="step 4: a term or a gradient is not finite"):
        training.advance(images)
    assert training.step == 3
    assert_equal(training.state_dict(), before)


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_equal(one[name], other[name])
    elif isinstance(one, Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


@PHASES
@torch.no_grad()
def test_terms_of_an_image_do_not_depend_on_its_batch(phase: str) -> None:
    training = make_training(phase)
    images = make_images(training.parts, 0)
    terms, made = training.terms(images, 3)
    for index in range(4):
        alone, made_alone = training.terms(images[index : index + 1], 3)
        for name, values in terms.items():
            torch.testing.assert_close(alone[name][0], values[index], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(made_alone, made[index::4], rtol=1e-4, atol=1e-4)


@PHASES
def test_the_loss_falls(phase: str) -> None:
    settings = replace(SETTINGS, learning_rate=5e-3, adversarial_weight=0.0, fade_steps=1)
    training = make_training(phase, settings, discriminator=None)
    images = make_images(training.parts, 0)
    losses = [training.advance(images)["loss"] for _ in range(10)]
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("step", range(1, 6))
def test_features_are_faded_in(step: int) -> None:
    training = make_training("inverter")
    images = make_images(training.parts, 0)
    with torch.no_grad():
        _, made = training.terms(images, step)
        _, whole = training.terms(images, 4)
    assert torch.equal(made[4:], whole[4:])
    assert torch.equal(made[:4], whole[:4]) == (step >= 4)


def test_edits_are_drawn_from_the_seed_and_the_step() -> None:
    training = make_training("editor")
    drawn: list[tuple[str, float]] = []
    training.edits = tuple(
        replace(
            edit, styles=lambda codes, power, edit=edit: drawn.append((edit.name, power)) or edit.styles(codes, power)
        )
        for edit in training.edits
    )
    images = make_images(training.parts, 0)
    with torch.no_grad():
        for step in (1, 2, 3, 4, 5, 6, 7, 8, 1):
            training.terms(images, step)
    assert drawn[::2] == drawn[1::2]  # the same edit and power on both codes
    assert {name for name, _ in drawn} == {"codes", "styles"}
    assert drawn[-1] == drawn[0]


def test_an_edit_of_styles_moves_its_channels_by_three_times_the_power() -> None:
    generator = make_parts().generator
    codes = generator.mapping.w_avg.expand(2, 8, 12)
    moved = style_edit("some", [2.0], generator, [(3, 1), (0, 2), (3, 1)]).styles(codes, 2.0)
    shifts = [after - before for after, before in zip(moved, generator.styles(codes), strict=True)]
    found = {(position, int(channel)) for position, shift in enumerate(shifts) for channel in shift[0].nonzero()}
    assert found == {(3, 1), (0, 2)}
    torch.testing.assert_close(shifts[0][:, 2], torch.full((2,), 6.0))
    torch.testing.assert_close(shifts[3][:, 1], torch.full((2,), 12.0))


def test_gray_images_and_content_boxes_are_trained_on_too() -> None:
    for config in (replace(SMALL, image_channels=1), replace(SMALL, content_box=(4, 28, 0, 32))):
        parts = make_parts(config)
        settings = replace(SETTINGS, lpips_weight=0.0, identity_weight=0.0)
        InverterTraining(parts, settings).advance(make_images(parts, 0))
        guide = Given(parts.generator.mapping.w_avg.expand(4, 8, 12))
        EditorTraining(parts, guide, make_edits(parts), settings, seed=0).advance(make_images(parts, 0))


# --- settings and parts ------------------------------------------------------------------------------


def test_presets_are_the_codes() -> None:
    assert [
        (each.learning_rate, each.adversarial_start, each.num_steps, each.feature_weight)
        for each in (SFE_INVERTER, SFE_EDITOR)
    ] == [(1e-4, 45_000, 300_000, 0.01), (1e-4, 0, 200_000, 0)]
    assert len(PUBLISHED_POWERS) == 13 and PUBLISHED_CHANNELS.keys() <= PUBLISHED_POWERS.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; wanted at least 1"),
        ({"batch_size": 6}, "batch_size is 6; wanted at most 4 or a multiple of it"),
        ({"learning_rate": math.nan}, "learning_rate is nan; wanted a positive number"),
        ({"feature_weight": -1.0}, "feature_weight is -1.0; wanted a number that is not negative"),
        ({"l2_weight": 0.0, "lpips_weight": 0.0, "identity_weight": 0.0}, "nothing would look at images"),
    ],
)
def test_settings_that_cannot_run_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SfeTrainingSettings(**change)


def test_parts_that_do_not_fit_are_refused() -> None:
    parts = make_parts()
    for change, message in (
        ({"identity": None}, "identity_weight is 0.1 without an identity network"),
        ({"discriminator": None}, "adversarial_weight is 0.01 without a discriminator"),
        ({"networks": SfeNetworks(replace(parts.networks.config, w_dim=13))}, "w_dim of the networks"),
        ({"generator": Generator(SMALL)}, "the generator has weights that want a gradient"),
        ({"generator": Generator(SMALL).freeze()}, "the generator has no mean code"),
    ):
        with pytest.raises(ConfigError, match=message):
            InverterTraining(replace(parts, **change), SETTINGS)
    with pytest.raises(ConfigError, match="there are no edits"):
        EditorTraining(parts, Shrinking(parts.generator), [], SETTINGS, seed=0)
    without = replace(parts, networks=SfeNetworks(replace(parts.networks.config, has_editor=False)))
    with pytest.raises(ConfigError, match="no Feature Editor to train"):
        EditorTraining(without, Shrinking(parts.generator), make_edits(parts), SETTINGS, seed=0)
    with pytest.raises(ConfigError, match='the edit "none" has no powers'):
        style_edit("none", [], parts.generator, [])


def test_batches_and_states_that_do_not_fit_are_refused() -> None:
    training = make_training("inverter")
    with pytest.raises(ShapeError, match=r"images are \[3, 3, 32, 32\]; this training wants \[4, 3, 32, 32\]"):
        training.advance(make_images(training.parts, 0, size=3))
    state = training.state_dict()
    with pytest.raises(CheckpointError, match="has no discriminator; wanted one"):
        training.load_state_dict({**state, "adversary": None})
    with pytest.raises(CheckpointError, match="lacks adversary, ranger, trained"):
        training.load_state_dict({"step": 1})
    with pytest.raises(CheckpointError, match="this state is of other networks"):
        make_training("editor").load_state_dict(state)
