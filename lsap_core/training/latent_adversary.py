"""The latent discriminator in training: its own step, its optimizer and its pools (e4e)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lsap_core.encoders.latent_discriminator import LatentDiscriminator
from lsap_core.generators.generator import Generator
from lsap_core.objectives.terms import r1_penalty, realness_loss
from lsap_core.training.code_pool import CodePool
from lsap_core.training.random_numbers import derived_seed, stream
from lsap_core.training.settings import EncoderTrainingSettings


class LatentAdversary:
    """Learns to tell codes of the mapping network from codes of the encoder (Tov et al. 2021, sec. 4.2).

    Every worker takes the same step on the codes of all workers, so nothing needs to be averaged.

    Args:
        generator: its mapping network makes the real codes.
        settings: learning rate, gradient penalty and size of the pools.
        seed: of the first weights and of all that is drawn later.
    """

    def __init__(self, generator: Generator, settings: EncoderTrainingSettings, *, seed: int):
        self.generator = generator
        self.settings = settings
        self.seed = seed
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(seed, "latent discriminator"))
            network = LatentDiscriminator(generator.config.w_dim)
        self.network = network.to(generator.mapping.w_avg.device)
        self.adam = torch.optim.Adam(self.network.parameters(), lr=settings.discriminator_learning_rate)
        self.real_pool = CodePool(settings.pool_size)
        self.fake_pool = CodePool(settings.pool_size)

    def encoder_loss(self, codes: Tensor, stage: int) -> Tensor:
        """mean_(i <= stage) softplus(-D(w_i)) of each of the codes [N, K, w_dim]: [N]."""
        rows = codes[:, : stage + 1]
        logits = self.network(rows.flatten(0, 1)).view(rows.shape[:2])
        return realness_loss(logits).mean(dim=1)

    def learn(self, codes: Tensor, sample_seeds: list[int], *, stage: int, step: int) -> dict[str, Tensor]:
        """Take one step of the discriminator, and every `r1_every` steps another one for the gradient penalty.

        Args:
            codes: the encoder's codes of the whole batch, [N, K, w_dim], in the same order on every worker.
            sample_seeds: one for each image, from which the row that is judged is chosen.
            stage: the last active head; only rows up to it are judged.
            step: of the training, counted from 0.

        Returns:
            Losses without dimensions: "discriminator", and "r1" where it was applied.
        """
        real, fake = self._exchange(codes.detach(), sample_seeds, stage=stage, step=step)
        loss = realness_loss(self.network(real)).mean() + realness_loss(-self.network(fake)).mean()
        self._move(loss)
        terms = {"discriminator": loss.detach()}
        if step % self.settings.r1_every == 0:
            real.requires_grad_()
            penalty = r1_penalty(self.network(real), real).mean()
            self._move(self.settings.r1_gamma / 2 * self.settings.r1_every * penalty)
            terms["r1"] = penalty.detach()
        return terms

    def _exchange(self, codes: Tensor, sample_seeds: list[int], *, stage: int, step: int) -> tuple[Tensor, Tensor]:
        config = self.generator.config
        z = torch.randn(len(codes), config.z_dim, generator=stream(self.seed, step, "real codes"))
        with torch.no_grad():
            real = self.generator.map(z.to(codes))
        if not self.settings.pool_size:
            return real, codes[:, 0]
        rows = [derived_seed(self.seed, step, "judged row", sample) % (stage + 1) for sample in sample_seeds]
        fake = codes[torch.arange(len(codes), device=codes.device), torch.tensor(rows, device=codes.device)]
        return (
            self.real_pool.exchange(real, stream(self.seed, step, "pool of real codes")),
            self.fake_pool.exchange(fake, stream(self.seed, step, "pool of fake codes")),
        )

    def _move(self, loss: Tensor) -> None:
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        self.adam.step()

    def state_dict(self) -> dict[str, Any]:
        """Weights, Adam's state and pools."""
        return {
            "network": self.network.state_dict(),
            "adam": self.adam.state_dict(),
            "real_pool": self.real_pool.to_tensors(),
            "fake_pool": self.fake_pool.to_tensors(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        device = self.generator.mapping.w_avg.device
        self.network.load_state_dict(state["network"])
        self.adam.load_state_dict(state["adam"])
        for pool, saved in ((self.real_pool, state["real_pool"]), (self.fake_pool, state["fake_pool"])):
            pool.load_tensors({name: tensor.to(device) for name, tensor in saved.items()})
