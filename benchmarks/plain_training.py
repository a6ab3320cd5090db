"""Training an encoder as the published loops do it: what `EncoderTraining` is compared with.

The loops of pSp, e4e and the LSAP toolbox in this project's words, with its layers; README.md lists what they do
otherwise.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsap_core.alignment import Anchor
from lsap_core.encoders import Encoder
from lsap_core.generators import Generator
from lsap_core.images import comparison_view
from lsap_core.inversion.inversion import PerceptualDistance
from lsap_core.spaces.styles import select
from lsap_core.training import EncoderTrainingSettings, ProgressiveSchedule
from lsap_core.training.encoder_step import IdentityNetwork
from lsap_core.training.ranger import LOOKAHEAD_EVERY, LOOKAHEAD_RATE, step_size


@dataclass(frozen=True)
class Draws:
    """The random numbers of a step that another training takes, to take the same one.

    Attributes:
        noise: of the generator, [N, 1, side, side] for each convolution.
        z: the discriminator's real codes come from these, [N, z_dim].
        rows: of W+, the one that the discriminator judges, for each image.
    """

    noise: list[Tensor]
    z: Tensor
    rows: list[int]


class PlainTraining:
    """An encoder in training; the parts are those of `EncoderTraining`."""

    def __init__(
        self,
        encoder: Encoder,
        generator: Generator,
        anchor: Anchor,
        perceptual: PerceptualDistance,
        identity: IdentityNetwork | None,
        settings: EncoderTrainingSettings,
        discriminator: nn.Module,
    ):
        self.encoder = encoder
        self.generator = generator
        self.anchor = anchor
        self.perceptual = perceptual
        self.identity = identity
        self.settings = settings
        self.discriminator = discriminator
        self.step = 0
        self.schedule = ProgressiveSchedule(
            settings.progressive_start, settings.progressive_every, encoder.config.num_ws
        )
        self.ranger = PlainRanger(list(encoder.parameters()), settings.learning_rate)
        self.adam = torch.optim.Adam(discriminator.parameters(), lr=settings.discriminator_learning_rate)
        self.real_pool, self.fake_pool = PlainPool(settings.pool_size), PlainPool(settings.pool_size)

    def advance(self, images: Tensor, draws: Draws | None = None) -> dict[str, float]:
        """Take one step; its terms are those of `EncoderTraining.advance`, the gradient's length only with draws."""
        stage = self.schedule.stage(self.step)
        self.encoder.train()
        learned = self._discriminate(images, stage, draws) if self.settings.adversarial_weight else {}
        codes = self.encoder(images, stage=stage)
        noise = self._noise(len(images)) if draws is None else draws.noise
        shown = comparison_view(
            self.generator.synthesize(codes, noise=noise), content_box=self.generator.config.content_box
        )
        terms = self._terms(codes, shown, images, stage)
        loss = torch.zeros((), device=images.device)
        for name, term in terms.items():
            loss = loss + getattr(self.settings, f"{name}_weight") * term
        for parameter in self.encoder.parameters():
            parameter.grad = None
        loss.backward()
        logged = {"loss": loss.item(), **{name: term.item() for name, term in terms.items()}, **learned}
        if draws is not None:
            gradients = [parameter.grad for parameter in self.encoder.parameters() if parameter.grad is not None]
            logged["gradient_norm"] = nn.utils.get_total_norm(gradients).item()
        self.ranger.step()
        self.step += 1
        return logged

    def _terms(self, codes: Tensor, shown: Tensor, images: Tensor, stage: int) -> dict[str, Tensor]:
        settings = self.settings
        terms = {"l2": F.mse_loss(shown, images)}
        terms["lpips"] = self.perceptual.distance(
            self.perceptual.features(shown), self.perceptual.features(images)
        ).mean()
        if settings.identity_weight:
            assert self.identity is not None
            self.identity.embed(images)  # of the input, for the log; training data has the target equal to the input
            target = self.identity.embed(images).detach()
            terms["identity"] = 1 - (self.identity.embed(shown) * target).sum(dim=1).mean()
        if settings.sncd_weight:
            styles = select(self.generator.styles(codes), self.generator.config, self.anchor.style_set)
            layers = zip(styles[: stage + 1], self.anchor.directions, strict=False)
            terms["sncd"] = sum_of(
                [1 - (style / style.norm(dim=-1, keepdim=True) @ direction).mean() for style, direction in layers]
            )
        if settings.delta_weight:
            terms["delta"] = sum_of(
                [torch.linalg.vector_norm(codes[:, row] - codes[:, 0], dim=1).mean() for row in range(1, stage + 1)]
            )
        if settings.adversarial_weight:
            judged = [F.softplus(-self.discriminator(codes[:, row])).mean() for row in range(stage + 1)]
            terms["adversarial"] = sum_of(judged) / len(judged)
        return terms

    def _discriminate(self, images: Tensor, stage: int, draws: Draws | None) -> dict[str, float]:
        """The discriminator's step, for which the encoder is computed once more."""
        self.discriminator.requires_grad_(True)
        config = self.generator.config
        with torch.no_grad():
            z = torch.randn(len(images), config.z_dim, device=images.device) if draws is None else draws.z
            codes = self.encoder(images, stage=stage)
            rows = [random.randrange(stage + 1) for _ in images] if draws is None else draws.rows
            real = self.real_pool.query(self.generator.map(z))
            fake = self.fake_pool.query(torch.stack([code[row] for code, row in zip(codes, rows, strict=True)]))
        loss = F.softplus(-self.discriminator(real)).mean() + F.softplus(self.discriminator(fake)).mean()
        self._move(loss)
        logged = {"discriminator": loss.item()}
        if self.step % self.settings.r1_every == 0:
            real = real.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.discriminator(real).sum(), real, create_graph=True)
            penalty = gradient.square().sum(dim=1).mean()
            self._move(self.settings.r1_gamma / 2 * self.settings.r1_every * penalty)
            logged["r1"] = penalty.item()
        self.discriminator.requires_grad_(False)
        return logged

    def _move(self, loss: Tensor) -> None:
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()

    def _noise(self, num_images: int) -> list[Tensor]:
        device = self.generator.mapping.w_avg.device
        return [torch.randn(num_images, 1, *size, device=device) for size in self.generator.config.noise_sizes]


class PlainRanger:
    """Ranger, one tensor after another."""

    def __init__(self, parameters: list[nn.Parameter], lr: float):
        self.parameters = parameters
        self.lr = lr
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}
        self.steps: dict[nn.Parameter, int] = {}

    @torch.no_grad()
    def step(self, *, beta1: float = 0.95, beta2: float = 0.999, eps: float = 1e-5) -> None:
        """Move every parameter that has a gradient."""
        for parameter in self.parameters:
            if parameter.grad is None:
                continue
            if parameter not in self.state:
                zeros = {name: torch.zeros_like(parameter) for name in ("m", "v")}
                self.state[parameter] = {**zeros, "slow": parameter.detach().clone()}
            state = self.state[parameter]
            step = self.steps[parameter] = self.steps.get(parameter, 0) + 1
            gradient = parameter.grad
            if gradient.ndim > 1:
                gradient = gradient - gradient.mean(dim=tuple(range(1, gradient.ndim)), keepdim=True)
            state["v"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            state["m"].mul_(beta1).add_(gradient, alpha=1 - beta1)
            size, is_rectified = step_size(step, beta1, beta2)
            if is_rectified:
                parameter.addcdiv_(state["m"], state["v"].sqrt().add_(eps), value=-size * self.lr)
            else:
                parameter.add_(state["m"], alpha=-size * self.lr)
            if step % LOOKAHEAD_EVERY == 0:
                state["slow"].add_(parameter - state["slow"], alpha=LOOKAHEAD_RATE)
                parameter.copy_(state["slow"])


class PlainPool:
    """Codes of earlier steps, one tensor each."""

    def __init__(self, size: int):
        self.size = size
        self.codes: list[Tensor] = []

    def query(self, codes: Tensor) -> Tensor:
        """As many codes as are given, [N, D]: the new ones while the pool fills up, then sometimes old ones."""
        returned: list[Tensor] = []
        for code in codes:
            if len(self.codes) < self.size:
                self.codes.append(code)
                returned.append(code)
            elif random.random() < 0.5:
                place = random.randrange(self.size)
                returned.append(self.codes[place].clone())
                self.codes[place] = code
            else:
                returned.append(code)
        return torch.stack(returned)


def sum_of(terms: list[Tensor]) -> Tensor:
    """The terms added up one after another."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
