"""The latent discriminator in training."""

from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor

from lsap_core.training.latent_adversary import LatentAdversary


def make(small: ModuleType, **changes: object) -> LatentAdversary:
    """A discriminator before its first step."""
    generator, _, _ = small.make_parts()
    return LatentAdversary(generator, replace(small.E4E, **changes), seed=0)


def wrong_codes(count: int = 8) -> Tensor:
    """Codes far from those of the mapping network."""
    return torch.randn(count, 8, 12, generator=torch.Generator().manual_seed(0)) + 3


def test_it_learns_to_tell_codes_apart(small: ModuleType) -> None:
    adversary = make(small, r1_gamma=0.0)
    seeds = list(range(8))
    losses = [adversary.learn(wrong_codes(), seeds, stage=7, step=step)["discriminator"].item() for step in range(60)]
    assert losses[-1] < 0.3 < 1 < losses[0]
    real = adversary.generator.map(torch.randn(8, 6))
    assert adversary.network(real).min() > adversary.network(wrong_codes()[:, 0]).max()
    assert (
        adversary.encoder_loss(wrong_codes(), 7).min()
        > adversary.encoder_loss(real[:, None].expand(-1, 8, -1), 7).max()
    )


def test_the_penalty_is_a_step_of_its_own_every_few_steps(small: ModuleType) -> None:
    adversary = make(small, r1_every=3)
    terms = [adversary.learn(wrong_codes(), list(range(8)), stage=0, step=step) for step in range(7)]
    assert ["r1" in each for each in terms] == [True, False, False, True, False, False, True]
    taken = adversary.adam.state[next(adversary.network.parameters())]["step"]
    assert int(taken) == 7 + 3
    with_penalty, without = make(small, r1_every=3), make(small, r1_every=3, r1_gamma=0.0)
    for each in (with_penalty, without):
        for step in range(30):
            last = each.learn(wrong_codes(), list(range(8)), stage=0, step=step)
    del last
    slopes = []
    for each in (with_penalty, without):
        real = each.generator.map(torch.randn(64, 6, generator=torch.Generator().manual_seed(1))).requires_grad_()
        (gradient,) = torch.autograd.grad(each.network(real).sum(), real)
        slopes.append(gradient.square().sum(dim=1).mean().item())
    assert slopes[0] < 0.5 * slopes[1]


def test_only_rows_up_to_the_stage_are_judged(small: ModuleType) -> None:
    codes = torch.arange(8.0)[None, :, None].expand(200, -1, 12).contiguous()
    for stage, pool_size, rows in ((0, 300, {0.0}), (3, 300, {0.0, 1.0, 2.0, 3.0}), (7, 0, {0.0})):
        adversary = make(small, pool_size=pool_size)
        _, fake = adversary._exchange(codes, list(range(200)), stage=stage, step=0)
        assert set(fake[:, 0].tolist()) == rows
    adversary = make(small)
    changed = codes.clone()
    changed[:, 4:] = 100
    assert torch.equal(adversary.encoder_loss(codes, 3), adversary.encoder_loss(changed, 3))
    assert not torch.equal(adversary.encoder_loss(codes, 4), adversary.encoder_loss(changed, 4))


def test_its_first_weights_follow_from_the_seed_and_leave_other_random_numbers_alone(small: ModuleType) -> None:
    generator, _, _ = small.make_parts()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one = LatentAdversary(generator, small.E4E, seed=1)
    assert torch.equal(torch.rand(2), expected)
    two, three = LatentAdversary(generator, small.E4E, seed=1), LatentAdversary(generator, small.E4E, seed=2)
    first = [next(each.network.parameters()) for each in (one, two, three)]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
