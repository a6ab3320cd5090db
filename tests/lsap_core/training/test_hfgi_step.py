"""One step of training HFGI's networks: what it computes, what it changes, and what it leaves alone."""

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from lsap_core.errors import CheckpointError, ConfigError, ShapeError, TrainingDivergedError
from lsap_core.generators import GeneratorConfig
from lsap_core.perceptual.features import FeatureDistance
from lsap_core.refinement.hfgi_networks import HfgiConfig, HfgiNetworks
from lsap_core.training.hfgi_settings import HfgiTrainingSettings
from lsap_core.training.hfgi_step import HfgiTraining
from lsap_core.training.perspective import random_perspective
from lsap_core.training.random_numbers import draw_noise, stream

SETTINGS = HfgiTrainingSettings(batch_size=4, learning_rate=1e-2)
MakeTraining = Callable[..., HfgiTraining]


@pytest.fixture(scope="module")
def make_training(small: ModuleType) -> MakeTraining:
    generator, _, network = small.make_parts()

    def make(*, seed: int = 5, **changes: Any) -> HfgiTraining:
        settings = replace(SETTINGS, **changes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            networks = HfgiNetworks(
                HfgiConfig.for_generator(generator.config, widths="small", view_side=settings.view_side)
            )
        return HfgiTraining(networks, generator, FeatureDistance(network), small.Identity(network), settings, seed=seed)

    return make


def batch(training: HfgiTraining, small: ModuleType, step: int = 0) -> tuple[Tensor, Tensor, list[int]]:
    """Images of the generator with something that no code holds, their codes without it, and their seeds."""
    images, seeds = small.batch(training.generator, step)
    images[:, 0, 8:16, 4:12] = 1.0
    random = torch.Generator().manual_seed(100 + step)
    codes = training.generator.map(torch.randn(len(images), training.generator.config.z_dim, generator=random))
    return images, training.generator.expand(codes), seeds


def train(training: HfgiTraining, small: ModuleType, steps: range) -> list[dict[str, float]]:
    return [training.advance(*batch(training, small, step % 3)) for step in steps]


def saved(training: HfgiTraining) -> dict[str, Any]:
    """The state as a restricted reader finds it in a file."""
    file = io.BytesIO()
    torch.save(training.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_the_gradient_is_that_of_the_formula(make_training: MakeTraining, small: ModuleType) -> None:
    training = make_training()
    training.step = 3
    networks, generator = copy.deepcopy(training.networks).train(), training.generator
    images, codes, seeds = batch(training, small)
    logged = training.advance(images, codes, seeds)

    streams = [stream(5, 3, "noise", seed) for seed in seeds]
    first_noise, second_noise = draw_noise(generator.config, streams), draw_noise(generator.config, streams)
    first = generator.synthesize(codes, noise=first_noise).clamp(-1, 1)
    warps = [stream(5, 3, "warp", seed) for seed in seeds]
    warped = random_perspective(images - first, warps, distortion=0.15, probability=0.9)
    assert not torch.allclose(warped, images - first)
    aligned = networks.aligner(torch.cat([warped, first], dim=1))
    scale, shift = networks.encoder(aligned)
    styles = generator.styles(codes)
    state = generator.synthesize_styles(styles, noise=second_noise, collect=(1,)).states[1]
    fused = replace(state, features=state.features * (1 + scale) + shift)
    seen = generator.synthesize_styles(styles, noise=second_noise, start=fused).image
    terms = {
        "l2": (seen - images).square().mean(),
        "lpips": training.perceptual(seen, images).mean(),
        "identity": 1 - (training.identity.embed(seen) * training.identity.embed(images)).sum(dim=1).mean(),
        "alignment": (aligned - (images - first)).abs().mean(),
    }
    loss = terms["l2"] + 0.8 * terms["lpips"] + 0.1 * terms["identity"] + 0.1 * terms["alignment"]
    loss.backward()
    for name, value in {"loss": loss, **terms}.items():
        assert logged[name] == pytest.approx(value.item(), rel=1e-4), name
    total = 0.0
    for parameter, expected in zip(training.networks.parameters(), networks.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-3, atol=1e-4)
        total += expected.grad.square().sum().item()
    assert logged["gradient_norm"] == pytest.approx(total**0.5, rel=1e-3)


def test_a_few_steps_bring_images_closer(make_training: MakeTraining, small: ModuleType) -> None:
    training = make_training()
    given = batch(training, small)
    logged = [training.advance(*given) for _ in range(12)]
    for term in ("loss", "l2", "alignment"):
        assert logged[-1][term] < 0.8 * logged[0][term], term
    assert logged[-1]["loss"] < 0.5 * logged[0]["loss"]


def test_a_training_may_start_at_the_plain_image(make_training: MakeTraining, small: ModuleType) -> None:
    training = make_training(learning_rate=3e-2, lpips_weight=0.0, identity_weight=0.0)
    training.networks.start_without_effect()
    images, codes, seeds = batch(training, small)
    plain = training.generator.synthesize(codes)
    torch.testing.assert_close(training.reconstruct(images, codes), plain)
    logged = [training.advance(images, codes, seeds) for _ in range(16)]
    assert logged[-1]["l2"] < 0.95 * logged[0]["l2"]


def test_only_the_two_networks_move(make_training: MakeTraining, small: ModuleType) -> None:
    training = make_training()
    generator, perceptual = (copy.deepcopy(part.state_dict()) for part in (training.generator, training.perceptual))
    before = copy.deepcopy(training.networks.state_dict())
    train(training, small, range(1))
    small.assert_equal(training.generator.state_dict(), generator)
    small.assert_equal(training.perceptual.state_dict(), perceptual)
    assert not training.generator.training
    for name, tensor in training.networks.state_dict().items():
        assert not torch.equal(tensor, before[name]), name


def test_the_same_seed_gives_the_same_weights(make_training: MakeTraining, small: ModuleType) -> None:
    trainings = [make_training(seed=seed) for seed in (5, 5, 6)]
    for training in trainings:
        train(training, small, range(1))
    one, other, another = (training.networks.state_dict() for training in trainings)
    small.assert_equal(one, other)
    assert not torch.equal(one["encoder.condition_scale3.2.weight"], another["encoder.condition_scale3.2.weight"])


def test_a_saved_training_goes_on_bit_for_bit(make_training: MakeTraining, small: ModuleType) -> None:
    whole, first, second = make_training(), make_training(), make_training()
    logged = train(whole, small, range(4))
    train(first, small, range(2))
    train(second, small, range(1))  # what it did before does not matter
    second.load_state_dict(saved(first))
    assert train(second, small, range(2, 4)) == logged[2:]
    small.assert_equal(second.state_dict(), whole.state_dict())
    with pytest.raises(CheckpointError, match="lacks ranger"):
        second.load_state_dict({"step": 0, "networks": {}})
    with pytest.raises(CheckpointError, match="other networks"):
        second.load_state_dict({**saved(first), "networks": {}})


def test_a_loss_that_is_not_finite_changes_nothing(make_training: MakeTraining, small: ModuleType) -> None:
    training = make_training()
    train(training, small, range(1))
    before = saved(training)
    images, codes, seeds = batch(training, small)
    codes = codes.clone()
    codes[2] = torch.nan
    with pytest.raises(TrainingDivergedError, match=r"step 1: .* not finite \(loss nan"):
        training.advance(images, codes, seeds)
    small.assert_equal(saved(training), before)


def test_validation_is_of_each_image_and_changes_nothing(make_training: MakeTraining, small: ModuleType) -> None:
    training = make_training(identity_weight=0.0)
    train(training, small, range(1))
    before = saved(training)
    images, codes, _ = batch(training, small)
    terms = training.validate(images, codes)
    assert set(terms) == {"loss", "l2", "lpips", "alignment"}
    for row in range(4):
        for name, value in training.validate(images[row : row + 1], codes[row : row + 1]).items():
            torch.testing.assert_close(value[0], terms[name][row], rtol=1e-3, atol=1e-4)
    seen = training.reconstruct(images, codes)
    torch.testing.assert_close((seen - images).square().mean(dim=(1, 2, 3)), terms["l2"])
    small.assert_equal(saved(training), before)
    assert training.networks.training


def test_networks_may_see_larger_images(make_training: MakeTraining, small: ModuleType) -> None:
    training = make_training(view_side=64, lpips_weight=0.0, identity_weight=0.0)
    images, codes, seeds = batch(training, small)
    images = torch.nn.functional.interpolate(images, (64, 64))
    assert training.fusion.size == (16, 16)
    assert set(training.advance(images, codes, seeds)) == {"loss", "l2", "alignment", "gradient_norm"}


def test_what_does_not_fit_is_refused(make_training: MakeTraining, small: ModuleType) -> None:
    training = make_training()
    images, codes, seeds = batch(training, small)
    for wrong in (
        (images[:3], codes[:3], seeds[:3]),
        (images, codes, seeds[:3]),
        (images[:, :1], codes, seeds),
        (images[:, :, :16], codes, seeds),
        (images, codes[:, 0], seeds),
        (images, codes[:3], seeds),
    ):
        with pytest.raises(ShapeError, match=r"wanted|wants"):
            training.advance(*wrong)
    parts = (training.generator, training.perceptual)
    with pytest.raises(ConfigError, match="no identity network"):
        HfgiTraining(training.networks, *parts, None, SETTINGS, seed=0)
    networks = HfgiNetworks(HfgiConfig.for_generator(GeneratorConfig(32, (8, 9, 8, 8)), widths="small"))
    with pytest.raises(ConfigError, match="condition 9"):
        HfgiTraining(networks, *parts, None, replace(SETTINGS, identity_weight=0.0), seed=0)


def test_the_rate_falls_to_nothing_over_the_last_steps(make_training: MakeTraining, small: ModuleType) -> None:
    settings = HfgiTrainingSettings(learning_rate=1.0, num_steps=100, decay_steps=4)
    assert [settings.learning_rate_at(step) for step in (0, 96, 97, 99)] == [1.0, 1.0, 0.75, 0.25]
    one, other = (
        make_training(num_steps=2, decay_steps=decay, learning_rate=rate) for decay, rate in ((2, 1e-2), (0, 5e-3))
    )
    one.step = other.step = 1  # the last step, at half the rate
    assert train(one, small, range(1)) == train(other, small, range(1))
    for moved, expected in zip(one.networks.parameters(), other.networks.parameters(), strict=True):
        assert torch.equal(moved, expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"l2_weight": 0.0, "lpips_weight": 0.0, "identity_weight": 0.0},
        {"alignment_weight": -1.0},
        {"alignment_weight": float("nan")},
        {"distortion": 1.0},
        {"warp_probability": 1.5},
        {"learning_rate": 0.0},
        {"batch_size": 0},
        {"num_steps": 10**10},
        {"view_side": 1},
        {"decay_steps": 100_001},
        {"widths": "large"},
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        HfgiTrainingSettings(**changes)


def test_defaults_are_the_published_ones() -> None:
    settings = HfgiTrainingSettings()
    assert settings.weights == {"l2": 1.0, "lpips": 0.8, "identity": 0.1, "alignment": 0.1}
    assert (settings.distortion, settings.warp_probability) == (0.15, 0.9)
    assert (settings.learning_rate, settings.batch_size, settings.num_steps) == (1e-4, 8, 100_000)
