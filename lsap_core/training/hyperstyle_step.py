"""Training a hypernetwork: everything that one optimizer step consists of (Alaluf et al. 2022, HyperStyle)."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from lsap_core.errors import CheckpointError, ConfigError, ShapeError, TrainingDivergedError
from lsap_core.generators.generator import Generator
from lsap_core.inversion.inversion import PerceptualDistance
from lsap_core.objectives.terms import pixel_error
from lsap_core.refinement.hyperstyle import changed_weights, hyper_view
from lsap_core.refinement.hyperstyle_networks import HyperBackbone, HyperNetwork
from lsap_core.refinement.tuned_weights import TunedGenerator
from lsap_core.training.encoder_step import IdentityNetwork, Target
from lsap_core.training.ranger import Ranger

MOST_STEPS = 10**9
TERMS = ("l2", "lpips", "identity")


@dataclass(frozen=True)
class HyperStyleTrainingSettings:
    """How a hypernetwork is trained; the defaults are published for faces.

    The loss of an image in a pass is l2_weight MSE + lpips_weight LPIPS + identity_weight (1 - similarity).

    Attributes:
        num_passes: through the hypernetwork for each image, each with a loss of its own.
        l2_weight: multiplier of the pixel error.
        lpips_weight: multiplier of the perceptual distance.
        identity_weight: multiplier of the identity term; 0.1 on faces, 0.5 on other domains.
        learning_rate: of Ranger.
        batch_size: images of one step.
        num_steps: optimizer steps.
        decay_steps: the last steps, over which the learning rate falls linearly to 0; the published training has none.
        layers: of the generator that a new hypernetwork changes, as in `HyperStyleSettings`.
        backbone: of a new hypernetwork, likewise.

    Raises:
        ConfigError: a value lies outside its range.
    """

    num_passes: int = 5
    l2_weight: float = 1.0
    lpips_weight: float = 0.8
    identity_weight: float = 0.1
    learning_rate: float = 1e-4
    batch_size: int = 8
    num_steps: int = 500_000
    decay_steps: int = 0
    layers: tuple[int, ...] | None = None
    backbone: HyperBackbone = "resnet_34"

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        for name in ("num_passes", "batch_size", "num_steps"):
            if not 1 <= getattr(self, name) <= MOST_STEPS:
                raise ConfigError(f"{name} is {getattr(self, name)}; wanted at least 1, and at most {MOST_STEPS:,}")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"learning_rate is {self.learning_rate}; wanted a positive number")
        for term in TERMS:
            weight = getattr(self, f"{term}_weight")
            if not 0 <= weight < math.inf:
                raise ConfigError(f"{term}_weight is {weight}; wanted a number that is not negative")
        if not self.weights:
            raise ConfigError("l2_weight, lpips_weight and identity_weight are all 0: nothing would look at images")
        if not 0 <= self.decay_steps <= self.num_steps:
            raise ConfigError(f"decay_steps is {self.decay_steps}; wanted 0 to num_steps, {self.num_steps}")
        if self.backbone not in get_args(HyperBackbone):
            raise ConfigError(f'backbone is "{self.backbone}"; wanted one of {", ".join(get_args(HyperBackbone))}')

    def learning_rate_at(self, step: int) -> float:
        """Ranger's rate at a step, counted from 0.

        Example:
            >>> settings = HyperStyleTrainingSettings(learning_rate=1.0, num_steps=100, decay_steps=4)
            >>> [settings.learning_rate_at(step) for step in (0, 96, 97, 99)]
            [1.0, 1.0, 0.75, 0.25]
        """
        if not self.decay_steps:
            return self.learning_rate
        return self.learning_rate * min(1.0, (self.num_steps - step) / self.decay_steps)

    @property
    def weights(self) -> dict[str, float]:
        """Multipliers of the terms that count, by the terms' names."""
        every = {term: getattr(self, f"{term}_weight") for term in TERMS}
        return {term: weight for term, weight in every.items() if weight > 0}


class HyperStyleTraining:
    """A hypernetwork in training; one call of `advance` is one optimizer step.

    Every pass has a loss whose gradient goes to its own offsets alone: what earlier passes found is taken as given.
    Gradients of all passes add up, and the network moves once. The generator adds its constant noise, so no random
    number is drawn. A training that is saved and loaded goes on bit for bit.

    Args:
        network: moved in place.
        generator: frozen, and on the network's device like everything else.
        perceptual: frozen.
        identity: frozen; not needed where the identity term has no weight.
        settings: how to train.

    Attributes:
        step: steps taken.

    Raises:
        ConfigError: parts do not fit each other or the settings.
    """

    def __init__(
        self,
        network: HyperNetwork,
        generator: Generator,
        perceptual: PerceptualDistance,
        identity: IdentityNetwork | None,
        settings: HyperStyleTrainingSettings,
    ):
        if network.config.generator != generator.config:
            raise ConfigError(
                f"the hypernetwork was made for {network.config.generator}, this is {generator.config}: build it with "
                "`HyperStyleConfig.for_generator`"
            )
        if settings.identity_weight > 0 and identity is None:
            raise ConfigError(
                f"identity_weight is {settings.identity_weight} without an identity network: name one as identity, or "
                "set identity_weight to 0"
            )
        self.network = network
        self.generator = generator.eval()
        self.perceptual = perceptual
        self.identity = identity
        self.settings = settings
        self.tuned = TunedGenerator(generator)
        self.ranger = Ranger(network.parameters(), lr=settings.learning_rate)
        self.step = 0

    def advance(self, images: Tensor, w_plus: Tensor) -> dict[str, float]:
        """Take one step.

        Args:
            images: the batch, [N, C, h, w] in [-1, 1], of the hypernetwork's input size.
            w_plus: their codes by the embedding that is refined, [N, K, w_dim].

        Returns:
            Means over images of the last pass: "loss" and its terms before multiplication; and "gradient_norm".

        Raises:
            ShapeError: images or codes have another shape.
            TrainingDivergedError: a term or the gradient is not finite. Everything is as it was before the step.
        """
        self._check(images, w_plus)
        if len(images) != self.settings.batch_size:
            raise ShapeError(f"{len(images)} images; wanted batch_size, {self.settings.batch_size}")
        before = [buffer.clone() for buffer in self.network.buffers()]
        self.ranger.zero_grad(set_to_none=True)
        terms, _ = self.backward(images, w_plus)
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        terms["gradient_norm"] = nn.utils.get_total_norm(gradients)
        values = torch.stack([value.float().mean() for value in terms.values()]).tolist()
        logged = dict(zip(terms, values, strict=True))
        if not all(map(math.isfinite, values)):
            self._restore(before)
            found = ", ".join(f"{name} {value:g}" for name, value in logged.items())
            raise TrainingDivergedError(
                f"step {self.step}: the loss or its gradient is not finite ({found}); nothing was changed: look for "
                "damaged images, lower learning_rate, or go on from an earlier checkpoint"
            )
        for group in self.ranger.param_groups:
            group["lr"] = self.settings.learning_rate_at(self.step)
        self.ranger.step()
        self.step += 1
        return logged

    def backward(self, images: Tensor, w_plus: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Add the gradient of the mean loss of every pass to the network's parameters; it is put into training mode.

        Returns:
            Terms of each image in the last pass, [N], and what the losses saw there, [N, C, h, w]; without gradient.
            Every pass renews the network's running statistics.
        """
        self.network.train()
        return self._passes(images, w_plus, self.settings.weights)

    @torch.no_grad()
    def validate(self, images: Tensor, w_plus: Tensor) -> dict[str, Tensor]:
        """How well images are reproduced by the last pass, in eval mode; arguments as for `advance`.

        Returns:
            Values of each image, [N]: "loss", "l2", "lpips", and "identity" where there is a network for it.

        Raises:
            ShapeError: images or codes have another shape.
        """
        self._check(images, w_plus)
        self.network.eval()
        names = [name for name in TERMS if name != "identity" or self.identity is not None]
        return self._passes(images, w_plus, dict.fromkeys(names, 0.0) | self.settings.weights)[0]

    @torch.no_grad()
    def reconstruct(self, images: Tensor, w_plus: Tensor) -> Tensor:
        """What `validate` compares images [N, C, h, w] with: the same shape, about [-1, 1], unclamped."""
        self._check(images, w_plus)
        self.network.eval()
        return self._passes(images, w_plus, {"l2": 1.0})[1]

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, as tensors and numbers in dicts; tensors are no copies."""
        return {"step": self.step, "network": self.network.state_dict(), "ranger": self.ranger.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; the next step then goes on bit for bit.

        Raises:
            CheckpointError: the state is that of another hypernetwork.
        """
        missing = {"step", "network", "ranger"} - state.keys()
        if missing:
            raise CheckpointError(f"this state of a training lacks {', '.join(sorted(missing))}: it is none of ours")
        try:
            self.network.load_state_dict(state["network"])
            self.ranger.load_state_dict(copy.deepcopy(state["ranger"]))  # torch's optimizers keep what they are given
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"this state is of another hypernetwork: {error}") from error
        self.step = int(state["step"])

    def _passes(self, images: Tensor, w_plus: Tensor, weights: dict[str, float]) -> tuple[dict[str, Tensor], Tensor]:
        target = self._target(images, weights)
        with torch.no_grad():
            seen = self._seen(w_plus, {})
        total: dict[int, Tensor] = {}
        terms: dict[str, Tensor] = {}
        for _ in range(self.settings.num_passes):
            added = self.network(torch.cat([images, seen], dim=1))
            offsets = {index: total[index] + values if total else values for index, values in added.items()}
            seen = self._seen(w_plus, offsets)
            terms = self._terms(seen, target, weights)
            loss = torch.stack([weights[name] * value for name, value in terms.items()]).sum(dim=0)  # [N]
            if self.network.training:
                loss.mean().backward()
            total, seen = {index: values.detach() for index, values in offsets.items()}, seen.detach()
            terms = {"loss": loss, **terms}
        return {name: value.detach() for name, value in terms.items()}, seen

    def _seen(self, w_plus: Tensor, offsets: dict[int, Tensor]) -> Tensor:
        weights = changed_weights(self.tuned, self.network.config, offsets)
        return hyper_view(self.tuned.synthesize(w_plus, weights), self.network.config)

    def _terms(self, seen: Tensor, target: Target, names: dict[str, float]) -> dict[str, Tensor]:
        """The named terms of each image, [N]."""
        terms: dict[str, Tensor] = {}
        if "l2" in names:
            terms["l2"] = pixel_error(seen, target.images)
        if "lpips" in names:
            terms["lpips"] = self.perceptual.distance(self.perceptual.features(seen), target.features)
        if "identity" in names and self.identity is not None and target.embedding is not None:
            terms["identity"] = 1 - (self.identity.embed(seen) * target.embedding).sum(dim=1)
        return terms

    @torch.no_grad()
    def _target(self, images: Tensor, names: dict[str, float]) -> Target:
        return Target(
            images,
            self.perceptual.features(images) if "lpips" in names else [],
            self.identity.embed(images) if self.identity is not None and "identity" in names else None,
        )

    @torch.no_grad()
    def _restore(self, before: list[Tensor]) -> None:
        for buffer, old in zip(self.network.buffers(), before, strict=True):
            buffer.copy_(old)
        self.ranger.zero_grad(set_to_none=True)

    def _check(self, images: Tensor, w_plus: Tensor) -> None:
        config = self.network.config
        wanted = (config.generator.image_channels, *config.input_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != wanted or not len(images):
            raise ShapeError(
                f"images are {list(images.shape)}; this training wants [N, {', '.join(map(str, wanted))}] with N > 0: "
                "bring them to the hypernetwork's input size with `hyper_view`"
            )
        codes = [len(images), config.generator.num_ws, config.generator.w_dim]
        if list(w_plus.shape) != codes:
            raise ShapeError(f"codes are {list(w_plus.shape)}; wanted {codes}")
