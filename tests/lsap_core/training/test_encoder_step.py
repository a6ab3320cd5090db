"""One step of training an encoder: what it computes, what it changes, and what it leaves alone."""

import copy
import io
import itertools
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lsap_core.encoders import Encoder, EncoderConfig
from lsap_core.errors import CheckpointError, ConfigError, ShapeError, TrainingDivergedError
from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.spaces.styles import normalize, select
from lsap_core.training import EncoderTraining
from lsap_core.training.encoder_step import Target
from lsap_core.training.random_numbers import draw_noise, stream

METHODS = ["psp", "e4e", "lsap_e", "restyle_psp", "restyle_e4e"]


def saved(training: EncoderTraining) -> dict[str, Any]:
    """The state as a restricted reader finds it in a file."""
    file = io.BytesIO()
    torch.save(training.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def sncd(training: EncoderTraining, codes: Tensor, stage: int) -> Tensor:
    """sum_(l <= stage) (1 - mu_l . s_l / ||s_l||)."""
    anchor = training.sncd.anchor
    units = normalize(select(training.generator.styles(codes), training.generator.config, anchor.style_set))
    return sum(1 - unit @ mu for unit, mu in list(zip(units, anchor.directions, strict=True))[: stage + 1])


def loss_by_the_formula(training: EncoderTraining, codes: Tensor, seen: Tensor, images: Tensor, stage: int) -> Tensor:
    """The loss of each image as the settings describe it, term by term."""
    settings = training.settings
    rows = codes[:, : stage + 1]
    offsets = rows[:, 1:] - rows[:, :1]
    loss = settings.l2_weight * (seen - images).square().flatten(1).mean(dim=1)
    loss = loss + settings.lpips_weight * training.perceptual(seen, images)
    cosine = (training.identity.embed(seen) * training.identity.embed(images)).sum(dim=1)
    loss = loss + settings.identity_weight * (1 - cosine)
    loss = loss + settings.sncd_weight * sncd(training, codes, stage)
    if stage:
        loss = loss + settings.delta_weight * offsets.norm(dim=2).sum(dim=1)
    loss = loss + settings.w_norm_weight * (codes - training.encoder.w_avg).flatten(1).norm(dim=1)
    if training.adversary is not None:
        logits = torch.stack([training.adversary.network(row) for row in rows.unbind(1)])
        loss = loss + settings.adversarial_weight * F.softplus(-logits).mean(dim=0)
    return loss


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_is_that_of_the_formula(small: ModuleType, method: str) -> None:
    training = small.make_training(method)
    training.step = step = 3 if "restyle" in method else 4
    stage = training.schedule.stage(step)
    assert stage == (7 if "psp" in method else step)
    encoder = copy.deepcopy(training.encoder).train()
    images, seeds = small.batch(training.generator, step)
    logged = training.advance(images, seeds)

    streams = [stream(5, step, "noise", seed) for seed in seeds]
    codes = encoder.w_avg.expand(4, -1, -1)
    seen = training.generator.synthesize(codes[:1]).expand(4, -1, -1, -1)
    for _ in range(training.settings.num_passes):
        given = torch.cat([images, seen], dim=1) if encoder.config.is_iterative else images
        codes = codes.detach() + encoder.offsets(given, stage=stage)
        noise = draw_noise(training.generator.config, streams)
        seen = training.generator.synthesize(codes, noise=noise)
        loss = loss_by_the_formula(training, codes, seen, images, stage).mean()
        loss.backward()
        seen = seen.detach()
    assert logged["loss"] == pytest.approx(loss.item(), rel=1e-5)
    total = 0.0
    for parameter, expected in zip(training.encoder.parameters(), encoder.parameters(), strict=True):
        assert (parameter.grad is None) == (expected.grad is None)
        if expected.grad is not None:
            torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-3, atol=1e-5)
            total += expected.grad.square().sum().item()
    assert logged["gradient_norm"] == pytest.approx(total**0.5, rel=1e-4)


def test_logged_terms_are_means_before_multiplication(small: ModuleType) -> None:
    (logged,) = small.train(small.make_training("e4e", progressive_start=None), [0])
    assert set(logged) == {
        *("loss", "l2", "lpips", "identity", "delta", "adversarial"),
        *("gradient_norm", "discriminator", "r1"),
    }
    weights = {"l2": 1.0, "lpips": 0.8, "identity": 0.1, "delta": 0.01, "adversarial": 0.1}
    assert logged["loss"] == pytest.approx(sum(weight * logged[name] for name, weight in weights.items()), rel=1e-5)


@pytest.mark.parametrize("method", ["e4e", "lsap_e", "restyle_e4e"])
def test_a_saved_training_goes_on_bit_for_bit(small: ModuleType, method: str) -> None:
    settings = replace(small.METHODS[method], progressive_start=2, progressive_every=2)
    whole = small.make_training(settings)
    logged = small.train(whole, range(10))
    first = small.make_training(settings)
    assert small.train(first, range(5)) == logged[:5]
    second = small.make_training(settings)
    small.train(second, [77])  # what it did before does not matter
    second.load_state_dict(saved(first))
    assert second.step == 5
    assert small.train(second, range(5, 10)) == logged[5:]
    small.assert_equal(second.state_dict(), whole.state_dict())
    if method != "lsap_e":
        assert len(whole.adversary.real_pool.codes) == len(whole.adversary.fake_pool.codes) == 6


def test_a_loaded_state_is_not_shared(small: ModuleType) -> None:
    first, second = small.make_training("e4e"), small.make_training("e4e")
    small.train(first, range(2))
    second.load_state_dict(first.state_dict())
    before = copy.deepcopy(first.state_dict())
    small.train(second, range(2, 4))
    small.assert_equal(first.state_dict(), before)


@pytest.mark.parametrize("method", ["lsap_e", "restyle_e4e"])
def test_splitting_synthesis_and_losses_changes_only_rounding(small: ModuleType, method: str) -> None:
    """The encoder sees all images at once, so even its batch statistics are the same."""
    whole, parts = small.make_training(method), small.make_training(method, accumulate=3)
    for one, other in zip(small.train(whole, range(4)), small.train(parts, range(4)), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-6)
    for name, value in whole.encoder.state_dict().items():
        torch.testing.assert_close(parts.encoder.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_images_may_come_in_any_order(small: ModuleType) -> None:
    one, other = small.make_training("e4e"), small.make_training("e4e")
    for step in range(3):
        images, seeds = small.batch(one.generator, step)
        logged = one.advance(images, seeds)
        assert other.advance(images.flip(0), seeds[::-1]) == pytest.approx(logged, rel=1e-4)
    torch.testing.assert_close(other.adversary.state_dict()["fake_pool"], one.adversary.state_dict()["fake_pool"])


def test_noise_follows_from_seed_step_and_sample(small: ModuleType) -> None:
    training = small.make_training("psp")
    images, seeds = small.batch(training.generator, 0)
    start = saved(training)

    def loss(*, step: int = 0, seeds: list[int] = seeds, seed: int = 5) -> float:
        fresh = small.make_training("psp", seed=seed)
        fresh.load_state_dict({**start, "step": step})
        return fresh.advance(images, seeds)["loss"]

    assert loss() == loss()
    assert len({loss(), loss(step=1), loss(seeds=[seed + 1 for seed in seeds]), loss(seed=6)}) == 4


def test_a_falling_rate_moves_weights_by_so_much_less(small: ModuleType) -> None:
    def moves(**changes: Any) -> list[Tensor]:
        training = small.make_training("psp", num_steps=4, **changes)
        found = [torch.cat([weight.detach().flatten() for weight in training.encoder.parameters()])]
        for step in range(2):
            small.train(training, [step])
            found.append(torch.cat([weight.detach().flatten() for weight in training.encoder.parameters()]))
        return [after - before for before, after in itertools.pairwise(found)]

    constant, falling = moves(), moves(decay_steps=4)
    assert torch.equal(falling[0], constant[0])  # the first step has the whole rate
    torch.testing.assert_close(falling[1], 0.75 * constant[1], rtol=1e-3, atol=1e-6)


def test_heads_join_one_after_another(small: ModuleType) -> None:
    training = small.make_training("lsap_e", progressive_start=2, progressive_every=2)
    heads = list(training.encoder.heads)
    first = [copy.deepcopy(head.state_dict()) for head in heads]
    images, _ = small.batch(training.generator, 0)
    for step, last in enumerate([0, 0, 1, 1, 2, 2, 3]):
        assert training.schedule.stage(training.step) == last
        codes = training.encoder(images, stage=last)
        assert torch.equal(codes[:, last + 1 :], codes[:, :1].expand(-1, 7 - last, -1))
        (logged,) = small.train(training, [step])
        assert (logged["delta"] > 0) == (last > 0)
        for index, head in enumerate(heads):
            is_active = index <= last
            assert all((parameter in training.ranger.state) == is_active for parameter in head.parameters())
            is_moved = any(not torch.equal(head.state_dict()[name], old) for name, old in first[index].items())
            assert is_moved == is_active
    join = {index: training.ranger.state[next(heads[index].parameters())]["step"] for index in range(4)}
    assert join == {0: 7, 1: 5, 2: 3, 3: 1}


@pytest.mark.parametrize(
    ("method", "precision"), [("lsap_e", "float32"), ("e4e", "float16"), ("restyle_e4e", "float32")]
)
def test_a_diverged_step_changes_nothing(small: ModuleType, method: str, precision: str) -> None:
    training = small.make_training(method, precision=precision)
    small.train(training, range(2))
    before = copy.deepcopy(training.state_dict())
    images, seeds = small.batch(training.generator, 2)
    images[1, 0, 0, 0] = torch.inf
    with pytest.raises(TrainingDivergedError, match=r"step 2: the loss or its gradient is not finite .*l2 nan"):
        training.advance(images, seeds)
    small.assert_equal(training.state_dict(), before)
    other = small.make_training(method, precision=precision)
    other.load_state_dict(before)
    assert small.train(training, [2]) == small.train(other, [2])


def test_a_bad_gradient_of_a_good_loss_is_noticed(small: ModuleType) -> None:
    training = small.make_training("psp")
    before = copy.deepcopy(training.state_dict())
    parameter = training.encoder.heads[2].linear.bias
    parameter.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(TrainingDivergedError, match=r"gradient_norm nan"):
        small.train(training, [0])
    small.assert_equal(training.state_dict(), before)


def test_twenty_steps_on_a_few_images_halve_their_pixel_error(small: ModuleType) -> None:
    training = small.make_training("psp", lpips_weight=0.0, identity_weight=0.0, w_norm_weight=0.0)
    images, seeds = small.batch(training.generator, 0)
    errors = [training.advance(images, seeds)["l2"] for _ in range(20)]
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize("method", ["psp", "lsap_e", "restyle_psp"])
def test_validation_is_of_each_image_and_changes_nothing(small: ModuleType, method: str) -> None:
    training = small.make_training(method)
    small.train(training, range(2))
    before = copy.deepcopy(training.state_dict())
    images, _ = small.batch(training.generator, 50, size=5)
    found = training.validate(images)
    assert set(found) == {"loss", "l2", "lpips", "identity", "sncd"}
    alone = torch.cat([training.validate(images[row : row + 1])["loss"] for row in range(5)])
    torch.testing.assert_close(found["loss"], alone, rtol=1e-4, atol=1e-6)
    reconstruction = training.reconstruct(images)
    torch.testing.assert_close(found["l2"], (reconstruction - images).square().mean(dim=(1, 2, 3)))
    small.assert_equal(training.state_dict(), before)
    assert training.encoder.training
    encoder = copy.deepcopy(training.encoder).eval()
    if method == "lsap_e":  # all heads, whatever the stage
        codes = encoder(images)
        torch.testing.assert_close(found["sncd"], sncd(training, codes, 7).detach(), rtol=1e-4, atol=1e-5)
        expected = loss_by_the_formula(training, codes, reconstruction, images, 7)
        torch.testing.assert_close(found["loss"], expected.detach(), rtol=1e-4, atol=1e-5)


def test_an_iterative_encoder_refines_its_own_result(small: ModuleType) -> None:
    training = small.make_training("restyle_psp")
    images, _ = small.batch(training.generator, 0)
    encoder = training.encoder.eval()
    codes = encoder.w_avg.expand(4, -1, -1)
    for _ in range(3):
        seen = training.generator.synthesize(codes)
        codes = codes + encoder.offsets(torch.cat([images, seen], dim=1))
    torch.testing.assert_close(training.reconstruct(images), training.generator.synthesize(codes), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_is_close_and_keeps_float32_weights(small: ModuleType, precision: str) -> None:
    exact, rough = small.make_training("e4e"), small.make_training("e4e", precision=precision)
    (expected,), (found,) = small.train(exact, [0]), small.train(rough, [0])
    assert found.pop("loss_scale", 65536.0) == 65536.0
    assert found == pytest.approx(expected, rel=0.1, abs=0.01) and found != expected
    assert {parameter.dtype for parameter in rough.encoder.parameters()} == {torch.float32}
    rough.load_state_dict(saved(rough))
    assert rough.scaler.is_enabled() == (precision == "float16")


def test_float16_leaves_a_step_out_when_scaled_gradients_overflow(small: ModuleType) -> None:
    training = small.make_training("psp", precision="float16")
    handle = training.encoder.heads[0].linear.bias.register_hook(lambda gradient: gradient * torch.inf)
    before = [parameter.detach().clone() for parameter in training.encoder.parameters()]
    (logged,) = small.train(training, [0])
    assert logged["loss_scale"] == 65536.0 and training.scaler.get_scale() == 32768.0 and training.step == 1
    assert all(torch.equal(a, b) for a, b in zip(before, training.encoder.parameters(), strict=True))
    handle.remove()
    (logged,) = small.train(training, [1])
    assert logged["loss_scale"] == 32768.0
    assert not all(torch.equal(a, b) for a, b in zip(before, training.encoder.parameters(), strict=True))


def test_the_content_box_is_what_losses_see(small: ModuleType) -> None:
    config = replace(small.CONFIG, content_box=(4, 28, 0, 32))
    generator, anchor, _ = small.make_parts()
    boxed = Generator(config)
    boxed.load_state_dict(generator.state_dict())
    settings = replace(small.PSP, lpips_weight=0.0, identity_weight=0.0)
    encoder = small.make_encoder(settings, boxed)
    assert encoder.config.input_size == (24, 32)
    training = EncoderTraining(encoder, boxed.freeze(), anchor, None, None, settings, seed=0)
    images, seeds = small.batch(generator, 0)
    training.advance(images[:, :, 4:28], seeds)
    assert training.reconstruct(images[:, :, 4:28]).shape == (4, 3, 24, 32)


def test_wrong_images_and_seeds_are_refused(small: ModuleType) -> None:
    training = small.make_training("psp")
    images, seeds = small.batch(training.generator, 0)
    with pytest.raises(ShapeError, match="3 images with 4 seeds; wanted 4 of both, batch_size 4 over 1 workers"):
        training.advance(images[:3], seeds)
    with pytest.raises(ShapeError, match=r"images are \[4, 3, 16, 32\]; this training wants \[N, 3, 32, 32\]"):
        training.advance(images[:, :, :16], seeds)
    with pytest.raises(ShapeError, match="this training wants"):
        training.validate(images[:0])


def make(small: ModuleType, change: Callable[[dict[str, Any]], None]) -> EncoderTraining:
    """A training of changed parts."""
    generator, anchor, network = small.make_parts()
    parts: dict[str, Any] = {
        "settings": small.LSAP_E,
        "generator": generator,
        "anchor": anchor,
        "encoder": small.make_encoder(small.LSAP_E, generator),
        "identity": small.Identity(network),
    }
    change(parts)
    settings = parts.pop("settings")
    return EncoderTraining(perceptual=None, settings=settings, seed=0, **parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda parts: parts.update(settings=replace(parts["settings"], heads="direct", progressive_start=None)),
            "heads of the encoder is 'offsets'; wanted 'direct'",
        ),
        (
            lambda parts: parts.update(settings=replace(parts["settings"], is_iterative=True)),
            "is_iterative of the encoder is False; wanted True",
        ),
        (
            lambda parts: parts.update(
                encoder=Encoder(
                    EncoderConfig.for_generator(
                        GeneratorConfig(64, (8,) * 5, w_dim=12), heads="offsets", backbone="small"
                    )
                )
            ),
            "num_ws of the encoder is 10; its generator wants 8",
        ),
        (lambda parts: parts["generator"].requires_grad_(True), "weights that want a gradient; .* call `freeze`"),
        (lambda parts: parts.update(identity=None), "identity_weight is 0.1 without an identity network"),
        (
            lambda parts: parts.update(anchor=replace(parts["anchor"], style_set="full")),
            'style set "full", where several layers read one row',
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    small: ModuleType, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make(small, change)


def test_states_of_other_trainings_are_refused(small: ModuleType) -> None:
    lsap_e, e4e, psp = (small.make_training(method) for method in ("lsap_e", "e4e", "restyle_psp"))
    with pytest.raises(CheckpointError, match="has no latent discriminator; wanted one"):
        e4e.load_state_dict(lsap_e.state_dict())
    with pytest.raises(CheckpointError, match="has a latent discriminator; wanted none"):
        lsap_e.load_state_dict(e4e.state_dict())
    with pytest.raises(CheckpointError, match="this state is of another encoder"):
        lsap_e.load_state_dict(psp.state_dict())
    with pytest.raises(CheckpointError, match="lacks adversary, encoder, ranger, scaler"):
        lsap_e.load_state_dict({"step": 1})


def test_a_part_of_a_target_has_all_it_needs() -> None:
    target = Target(torch.arange(4.0)[:, None], [torch.arange(4.0)], torch.arange(4.0))
    part = target.part(slice(1, 3))
    assert part.images.tolist() == [[1.0], [2.0]]
    assert part.features[0].tolist() == [1.0, 2.0]
    assert part.embedding is not None and part.embedding.tolist() == [1.0, 2.0]
