"""Train a small generator on a CPU: a StyleGAN2, warm-started as an autoencoder, then trained adversarially.

A standard StyleGAN2 training starts from noise and needs millions of images. Two things differ here, so that one
CPU core is enough:

1. *Reconstruction phase.* An encoder (thrown away afterwards) maps training images to Z, the generator maps them
   back; a sliced Wasserstein distance keeps the codes uniform on the sphere that z is normalized to.
2. *Adversarial phase.* The non-saturating loss with R1 comes in with a small, growing weight, beside the
   reconstruction loss, which goes on.

The generator has therefore seen the training images through a reconstruction loss: invert only held-out ones.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.making.augmentation import random_affine
from domains.making.quality import SampleQuality, judge_samples
from domains.making.recipe import Recipe
from domains.network_files import load_network, save_generator
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.discriminator import Discriminator
from lsap_core.generators.generator import Generator
from lsap_core.perceptual.features import FeatureDistance, FeatureNet
from lsap_core.perceptual.judge import JudgeNet

Network = TypeVar("Network", bound=nn.Module)


class CodeEncoder(nn.Module):
    """Images [N, C, H, W] -> points on the sphere of Z, [N, z_dim], mean square 1; used in training only."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        widths = (config.image_channels, 16, 32, 64, 64)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        left = math.prod(side >> len(self.convs) for side in config.size)
        self.code = nn.Linear(widths[-1] * left, config.z_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Codes [N, z_dim]."""
        features = images
        for conv, norm in zip(self.convs, self.norms, strict=True):
            features = F.leaky_relu(norm(conv(features)), 0.2)
        return to_sphere(self.code(features.flatten(1)))


def to_sphere(z: Tensor) -> Tensor:
    """Scale each row to mean square 1, as the mapping network does."""
    return z * (z.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


class Trainer:
    """All networks, optimizers and random streams of one training, and its two kinds of step."""

    def __init__(self, recipe: Recipe):
        torch.manual_seed(recipe.generator.seed)
        self.recipe = recipe.generator
        self.sizes = recipe.sizes
        self.stream = torch.Generator().manual_seed(self.recipe.seed)
        self.images = recipe.load("train")[0].contiguous(memory_format=torch.channels_last)
        self.perceptual = FeatureDistance(load_network(recipe.folder / "features.safetensors", FeatureNet))
        self.judge = load_network(recipe.folder / "judge.safetensors", JudgeNet)
        self.generator = channels_last(Generator(self.sizes))
        self.averaged = copy.deepcopy(self.generator).requires_grad_(False)
        self.encoder = channels_last(CodeEncoder(self.sizes))
        self.discriminator = channels_last(Discriminator(self.sizes))
        self.generator_optimizer = torch.optim.Adam(
            [
                {"params": self.generator.parameters(), "lr": 2e-3},
                {"params": self.encoder.parameters(), "lr": 1e-3},
            ],
            betas=(0.5, 0.99),
            fused=True,
        )
        self.discriminator_optimizer = torch.optim.Adam(
            self.discriminator.parameters(),
            lr=self.recipe.discriminator_learning_rate,
            betas=(0.0, 0.99),
            fused=True,
        )
        self.images_shown = 0
        self.step = 0
        self.terms: dict[str, float] = {}

    def begin_adversarial_phase(self) -> None:
        """New optimizers' settings: other rates, no momentum."""
        for group, rate in zip(
            self.generator_optimizer.param_groups, (self.recipe.generator_learning_rate, 1e-3), strict=True
        ):
            group["lr"] = group["initial_lr"] = rate
            group["betas"] = (0.0, 0.99)
        for group in self.discriminator_optimizer.param_groups:
            group["initial_lr"] = group["lr"]

    def real(self, count: int) -> Tensor:
        """Training images drawn at random, slightly deformed, [count, C, R, R]."""
        chosen = torch.randint(len(self.images), (count,), generator=self.stream)
        return self._changed(self.images[chosen], self.recipe.deformation)

    def noise(self, count: int) -> list[Tensor]:
        """Fresh noise maps for `count` images."""
        return [torch.randn(count, 1, *size, generator=self.stream) for size in self.sizes.noise_sizes]

    def reconstruction_loss(self) -> Tensor:
        """Perceptual and pixel error of decoded images, and the distance of their codes from the prior."""
        recipe = self.recipe
        batch = self.real(recipe.wasserstein_batch)
        codes = self.encoder(batch)
        prior = to_sphere(torch.randn(codes.shape, generator=self.stream))
        wasserstein = sliced_wasserstein(codes, prior, self.stream)
        target, z = batch[: recipe.batch_size], codes[: recipe.batch_size]
        z = to_sphere(z + recipe.code_noise * torch.randn(z.shape, generator=self.stream))
        decoded = self.generator.synthesize(self.generator.map(z), noise=self.noise(len(z)))
        perceptual = self.perceptual(decoded, target).mean()
        pixel = (decoded - target).square().mean()
        self.terms |= {
            "perceptual": perceptual.item(),
            "mse": pixel.item(),
            "wasserstein": wasserstein.item(),
        }
        loss: Tensor = perceptual + recipe.pixel_weight * pixel + recipe.wasserstein_weight * wasserstein
        return loss

    def reconstruction_step(self) -> None:
        """One step of the first phase."""
        self._descend(self.generator_optimizer, self.reconstruction_loss())
        self._finish_step()

    def adversarial_step(self, progress: float) -> None:
        """One step of the second phase; `progress` runs from 0 to 1."""
        recipe = self.recipe
        self._anneal(progress)
        fake = self._fake(recipe.batch_size)
        self._discriminator_step(fake.detach())
        self.discriminator.requires_grad_(False)
        adversarial = F.softplus(-self.discriminator(self._augment(fake))).mean()
        ramp = min(1.0, self.step / 400)
        weight = recipe.adversarial_weight_start * (
            recipe.adversarial_weight_end / recipe.adversarial_weight_start
        ) ** min(1.0, progress / 0.5)
        loss = ramp * weight * adversarial
        if self.step % recipe.reconstruction_every == 0:
            loss = loss + recipe.reconstruction_every * self.reconstruction_loss()
        self._descend(self.generator_optimizer, loss)
        self.discriminator.requires_grad_(True)
        self.terms |= {"adversarial": adversarial.item(), "adversarial_weight": ramp * weight}
        self._finish_step()

    def _fake(self, count: int) -> Tensor:
        w = self.generator.map(torch.randn(2 * count, self.sizes.z_dim, generator=self.stream))
        first, second = w.unflatten(0, (2, count)).unbind(0)
        rows = torch.arange(self.sizes.num_ws)[None, :, None]
        crossover = torch.randint(1, self.sizes.num_ws, (count, 1, 1), generator=self.stream)
        mixed = torch.rand(count, 1, 1, generator=self.stream) < self.recipe.style_mixing
        w_plus = torch.where(mixed & (rows >= crossover), second[:, None], first[:, None])
        return self.generator.synthesize(w_plus, noise=self.noise(count))

    def _augment(self, images: Tensor) -> Tensor:
        return self._changed(images, self.recipe.augmentation)

    def _changed(self, images: Tensor, amounts: Mapping[str, float]) -> Tensor:
        changed = random_affine(images, **amounts, generator=self.stream)
        return changed.contiguous(memory_format=torch.channels_last)

    def _discriminator_step(self, fake: Tensor) -> None:
        recipe = self.recipe
        real = self._augment(self.real(recipe.batch_size))
        penalize = self.step % recipe.r1_every == 0
        real.requires_grad_(penalize)
        real_logits, fake_logits = self.discriminator(real), self.discriminator(self._augment(fake))
        loss = F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()
        self.terms |= {"real_logit": real_logits.mean().item(), "fake_logit": fake_logits.mean().item()}
        if penalize:
            (gradient,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
            loss = loss + recipe.r1_every * recipe.r1_weight / 2 * gradient.square().sum(dim=(1, 2, 3)).mean()
        self._descend(self.discriminator_optimizer, loss)

    def _anneal(self, progress: float) -> None:
        remaining = min(1.0, (1 - progress) / (1 - self.recipe.decay_from))
        for optimizer in (self.generator_optimizer, self.discriminator_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * max(remaining, 0.02)

    @staticmethod
    def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def _finish_step(self) -> None:
        self.step += 1
        self.images_shown += self.recipe.batch_size
        keep = 0.5 ** (self.recipe.batch_size / self.recipe.ema_half_life)
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.generator.parameters()), 1 - keep)

    def quality(self, count: int = 2000) -> SampleQuality:
        """Quality of samples of the averaged generator against the training images."""
        stream = torch.Generator().manual_seed(0)
        samples = draw_samples(self.averaged, count, stream)
        return judge_samples(self.judge, samples, self.images)


def channels_last(network: Network) -> Network:
    """The memory layout that is faster on CPUs."""
    return network.to(memory_format=torch.channels_last)


def sliced_wasserstein(a: Tensor, b: Tensor, stream: torch.Generator, *, num_directions: int = 64) -> Tensor:
    """Mean squared difference of sorted projections of two sets [N, D] on random directions."""
    directions = F.normalize(torch.randn(a.shape[1], num_directions, generator=stream), dim=0)
    return ((a @ directions).sort(dim=0).values - (b @ directions).sort(dim=0).values).square().mean()


@torch.no_grad()
def draw_samples(generator: Generator, count: int, stream: torch.Generator, *, batch_size: int = 250) -> Tensor:
    """Untruncated samples [count, C, R, R], clamped to [-1, 1], each with its own noise."""
    images = []
    for start in range(0, count, batch_size):
        size = min(batch_size, count - start)
        z = torch.randn(size, generator.config.z_dim, generator=stream)
        noise = [torch.randn(size, 1, *shape, generator=stream) for shape in generator.config.noise_sizes]
        images.append(generator.synthesize(generator.map(z), noise=noise).clamp(-1, 1))
    return torch.cat(images)


@torch.no_grad()
def with_w_avg(generator: Generator, *, count: int = 100_000) -> Generator:
    """Store the mean of W over `count` samples in the generator."""
    z = torch.randn(count, generator.config.z_dim, generator=torch.Generator().manual_seed(0))
    generator.mapping.w_avg.copy_(generator.map(z).double().mean(dim=0))
    return generator


def train_generator(recipe: Recipe, *, output: Path, log: Path, report_every: int = 10_000) -> None:
    """Train, log quality against the training images on the way, and write the averaged generator."""
    trainer = Trainer(recipe)
    phases = recipe.generator
    total = phases.reconstruction_images + phases.adversarial_images
    started, next_report = time.monotonic(), report_every
    with log.open("w") as lines:
        lines.write(json.dumps({"recipe": asdict(phases)}) + "\n")
        while trainer.images_shown < total:
            done = trainer.images_shown - phases.reconstruction_images
            if done < 0:
                trainer.reconstruction_step()
            else:
                if done < phases.batch_size:
                    trainer.begin_adversarial_phase()
                trainer.adversarial_step(done / phases.adversarial_images)
            if trainer.images_shown >= next_report or trainer.images_shown >= total:
                next_report += report_every
                row = {
                    "images": trainer.images_shown,
                    "seconds": round(time.monotonic() - started),
                    **{name: round(value, 4) for name, value in trainer.terms.items()},
                    **trainer.quality().as_dict(),
                }
                lines.write(json.dumps(row) + "\n")
                lines.flush()
                print(row, flush=True)
                if not math.isfinite(row["perceptual"]):
                    raise FloatingPointError(f"the training diverged after {trainer.images_shown} images")
                save_generator(output, with_w_avg(copy.deepcopy(trainer.averaged)))
