"""The discriminator of codes beside e4e's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lsap_core.encoders import LatentDiscriminator


@pytest.fixture(scope="module")
def discriminator(filled: Callable[..., dict[str, Tensor]]) -> LatentDiscriminator:
    discriminator = LatentDiscriminator(512)
    discriminator.load_state_dict(filled("latent_discriminator", "plain"))
    return discriminator


def test_logits_and_losses_are_the_published_ones(
    discriminator: LatentDiscriminator, reference: Callable[[str], Any]
) -> None:
    numbers = reference("latent_disc")
    with torch.no_grad():
        real, fake = discriminator(numbers["real_w"]), discriminator(numbers["fake_w"])
    assert real.shape == (5,)
    numbers.check("real_logits", real[:, None])
    numbers.check("fake_logits", fake[:, None])
    of_real, of_fake = F.softplus(-real).mean(), F.softplus(fake).mean()
    numbers.check("d_real_fake", torch.stack([of_real, of_fake]))
    numbers.check("d_loss", of_real + of_fake)
    numbers.check("g_loss", F.softplus(-fake).mean())


def test_the_gradient_penalty_is_the_published_one(
    discriminator: LatentDiscriminator, reference: Callable[[str], Any]
) -> None:
    numbers = reference("latent_disc")
    w = numbers["real_w"].requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(w).sum(), w, create_graph=True)
    penalty = gradient.square().sum(dim=1).mean()
    numbers.check("r1", penalty)
    numbers.check("r1_weighted", 10 / 2 * 16 * penalty)
    discriminator.zero_grad()
    penalty.backward()
    weight_gradient = discriminator.mlp[0].weight.grad
    assert weight_gradient is not None
    numbers.check("r1_grad_first_weight", weight_gradient[:8, :8])


@pytest.mark.parametrize("num_layers", [1, 3])
def test_depth_and_width_are_free(num_layers: int, numbers: Callable[..., Tensor]) -> None:
    assert LatentDiscriminator(7, num_layers)(numbers(4, 7)).shape == (4,)
