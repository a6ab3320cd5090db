"""The discriminator of images in training beside a refiner: its losses, its optimizer and its gradient penalty."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lsap_core.errors import ConfigError
from lsap_core.generators.discriminator import STDDEV_GROUP, Discriminator
from lsap_core.objectives.terms import r1_penalty, realness_loss


class ImageAdversary:
    """Goes on learning to tell photos from what a refiner makes of them.

    In a batch the discriminator compares images with each other (minibatch deviation): its losses are those of the
    batch, not of single images.

    Args:
        discriminator: moved in place.
        learning_rate: of Adam.
        r1_gamma: multiplier of the gradient penalty.
        r1_every: steps between gradient penalties.
    """

    def __init__(self, discriminator: Discriminator, *, learning_rate: float, r1_gamma: float, r1_every: int):
        self.network = discriminator.requires_grad_(True)
        self.r1_gamma = r1_gamma
        self.r1_every = r1_every
        self.adam = torch.optim.Adam(discriminator.parameters(), lr=learning_rate)

    def refiner_loss(self, images: Tensor) -> Tensor:
        """softplus(-D) of images [N, C, R, R] that a refiner made: [N]."""
        return realness_loss(self.network(images))

    def learned(self, real: Tensor, fake: Tensor, *, step: int) -> dict[str, Tensor]:
        """Losses whose sum the discriminator minimizes, without dimensions.

        "discriminator" is half of mean softplus(-D(real)) + mean softplus(D(fake)). "r1" is r1_gamma / 2 * r1_every
        times the mean of ||grad_x D(x)||^2 over the photos (Karras et al. 2020, lazy regularization), and there only
        where the number of the step is a multiple of `r1_every`.

        Args:
            real: photos, [N, C, R, R] in [-1, 1].
            fake: what the refiner made, [M, C, R, R].
            step: its number, counted from 1.
        """
        has_penalty = step % self.r1_every == 0
        real = real.detach().requires_grad_(has_penalty)
        of_real = self.network(real)
        of_fake = self.network(fake.detach())
        losses = {"discriminator": (realness_loss(of_real).mean() + realness_loss(-of_fake).mean()) / 2}
        if has_penalty:
            losses["r1"] = self.r1_gamma / 2 * self.r1_every * r1_penalty(of_real, real).mean()
        return losses

    def backward(self, losses: dict[str, Tensor]) -> None:
        """Leave the gradient of the sum of losses in the discriminator's parameters, and no other."""
        self.adam.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward(inputs=list(self.network.parameters()))

    def gradients(self) -> list[Tensor]:
        """What `backward` left."""
        return [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]

    def state_dict(self) -> dict[str, Any]:
        """Weights and Adam's state."""
        return {"network": self.network.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        self.adam.load_state_dict(state["adam"])


def check_stddev_group(batch_size: int) -> None:
    """Refuse batches that the discriminator cannot part into groups of equal size.

    Raises:
        ConfigError: more than four images, and not a multiple of four.
    """
    if batch_size > STDDEV_GROUP and batch_size % STDDEV_GROUP:
        raise ConfigError(
            f"batch_size is {batch_size}; wanted at most {STDDEV_GROUP} or a multiple of it, because the discriminator "
            "compares groups of that size"
        )
