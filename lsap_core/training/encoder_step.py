"""Training an encoder: everything that one optimizer step consists of (pSp, e4e, LSAP_E, ReStyle)."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lsap_core.alignment.anchor import Anchor
from lsap_core.alignment.sncd import SncdLoss
from lsap_core.encoders.config import EncoderConfig
from lsap_core.encoders.encoder import Encoder
from lsap_core.errors import CheckpointError, ConfigError, ShapeError, TrainingDivergedError
from lsap_core.generators.generator import Generator, Noise
from lsap_core.images import comparison_view
from lsap_core.inversion.inversion import PerceptualDistance
from lsap_core.objectives.terms import delta_distance, pixel_error, w_norm
from lsap_core.training.latent_adversary import LatentAdversary
from lsap_core.training.progressive import ProgressiveSchedule
from lsap_core.training.random_numbers import draw_noise, stream
from lsap_core.training.ranger import Ranger
from lsap_core.training.settings import EncoderTrainingSettings
from lsap_core.training.workers import all_workers, gather, num_workers, synchronize_batch_norm

REPORTED_TERMS = ("l2", "lpips", "identity", "sncd")
SMALLEST_LOSS_SCALE = 1.0


class IdentityNetwork(Protocol):
    """A network whose embeddings tell which person, or which thing, an image shows."""

    def embed(self, images: Tensor) -> Tensor:
        """Unit vectors [N, D] of images [N, C, H, W] in [-1, 1]."""
        ...


@dataclass(frozen=True)
class Target:
    """Images that an encoder should reproduce, and what the losses know of them; without gradient.

    Attributes:
        images: [N, C, h, w] in [-1, 1].
        features: of the perceptual network, or none.
        embedding: of the identity network, [N, D], or None.
    """

    images: Tensor
    features: list[Tensor]
    embedding: Tensor | None

    def part(self, rows: slice) -> Target:
        """The same of some of the images."""
        embedding = None if self.embedding is None else self.embedding[rows]
        return Target(self.images[rows], [tap[rows] for tap in self.features], embedding)


class EncoderTraining:
    """An encoder in training; one call of `advance` is one optimizer step.

    Images pass through the encoder in one batch, then through the frozen generator and the losses, whose gradient
    goes to the codes first and from there through the encoder. When `torch.distributed` runs, each worker gives its
    part of the batch; gradients, batch statistics and the discriminator's codes are those of the whole batch.

    All random numbers follow from the seed, the step and the samples' own seeds. So a training that is saved and
    loaded goes on bit for bit, and the number of workers changes nothing but rounding.

    Args:
        encoder: moved in place. Codes start from its `w_avg`.
        generator: frozen, and on the encoder's device like everything else.
        anchor: for the SNCD term; its vector l must belong to row l of W+.
        perceptual: frozen.
        identity: frozen; not needed where the identity term has no weight.
        settings: how to train.
        seed: of every random number.

    Attributes:
        step: steps taken.

    Raises:
        ConfigError: parts do not fit each other or the settings.
    """

    def __init__(
        self,
        encoder: Encoder,
        generator: Generator,
        anchor: Anchor,
        perceptual: PerceptualDistance,
        identity: IdentityNetwork | None,
        settings: EncoderTrainingSettings,
        *,
        seed: int,
    ):
        _check_parts(encoder, generator, anchor, identity, settings)
        self.encoder = encoder
        self.generator = generator
        self.perceptual = perceptual
        self.identity = identity
        self.settings = settings
        self.seed = seed
        self.step = 0
        self.schedule = ProgressiveSchedule(
            settings.progressive_start, settings.progressive_every, encoder.config.num_ws
        )
        self.sncd = SncdLoss(generator, anchor, reduction="none")
        self.adversary = LatentAdversary(generator, settings, seed=seed) if settings.adversarial_weight > 0 else None
        self.device = encoder.w_avg.device
        if num_workers() > 1:
            synchronize_batch_norm(encoder)
        self.ranger = Ranger(encoder.parameters(), lr=settings.learning_rate)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "float16")
        self._offsets = _Offsets(encoder)
        self._of_all_workers: DistributedDataParallel | None = None
        if num_workers() > 1:
            self._of_all_workers = _average_gradients(self._offsets, settings)
        self._first_view: Tensor | None = None

    def advance(self, images: Tensor, sample_seeds: Sequence[int]) -> dict[str, float]:
        """Take one step.

        With a latent discriminator its step comes first, on the same codes. An iterative encoder passes over its
        codes `num_passes` times with a loss at each, and moves once.

        Args:
            images: this worker's part of the batch, [N, C, h, w] in [-1, 1], of the encoder's input size.
            sample_seeds: one for each image; its noise maps follow from it.

        Returns:
            Means over this worker's images: "loss" and its terms before multiplication (of the last pass),
            "gradient_norm" of the encoder, "discriminator" and "r1" of the latent discriminator, and "loss_scale"
            in float16.

        Raises:
            ShapeError: images or seeds are not this worker's share of the batch.
            TrainingDivergedError: a term or the gradient is not finite. Everything is as it was before the step.
        """
        self._check_batch(images, sample_seeds)
        stage = self.schedule.stage(self.step)
        images = images.to(self.device)
        before = self._remember()
        self.encoder.train()
        self.ranger.zero_grad(set_to_none=True)
        terms = self._backward(images, sample_seeds, stage)
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.ranger)
        gradients = [parameter.grad for parameter in self.encoder.parameters() if parameter.grad is not None]
        terms["gradient_norm"] = nn.utils.get_total_norm(gradients)
        logged = self._read(terms, before)
        for group in self.ranger.param_groups:
            group["lr"] = self.settings.learning_rate_at(self.step)
        self.scaler.step(self.ranger)
        self.scaler.update()
        self.step += 1
        return logged

    @torch.no_grad()
    def validate(self, images: Tensor) -> dict[str, Tensor]:
        """How well images [N, C, h, w] are reproduced: in eval mode, with all heads and the generator's own noise.

        Returns:
            Values of each image, [N]: "l2", "lpips", "identity" where there is a network for it, "sncd" summed over
            layers, and "loss", the loss of the settings without the discriminator's term, which changes as it learns.

        Raises:
            ShapeError: the images are not of the encoder's input size.
        """
        self._check_images(images)
        images = images.to(self.device)
        names = {*REPORTED_TERMS, *self.settings.weights} - {"adversarial"}
        last = self.encoder.config.num_ws - 1
        target = self._target(images, names, is_training=False)
        terms, _ = self._terms(self._encode(images), target, "constant", last, names)
        return {"loss": self._weighed(terms), **{name: terms[name] for name in REPORTED_TERMS if name in terms}}

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """What `validate` compares images [N, C, h, w] with: the same shape, about [-1, 1], unclamped."""
        self._check_images(images)
        return self._view(self.generator.synthesize(self._encode(images.to(self.device))))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, as tensors, numbers and strings in dicts.

        As with modules and optimizers of torch the tensors are the training's own, not copies: save them before the
        next step. `torch.load(..., weights_only=True)` reads what `torch.save` made of it.
        """
        return {
            "step": self.step,
            "encoder": self.encoder.state_dict(),
            "ranger": self.ranger.state_dict(),
            "scaler": self.scaler.state_dict(),
            "adversary": None if self.adversary is None else self.adversary.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; the next step then goes on bit for bit.

        Raises:
            CheckpointError: the state is that of another encoder, or of one with or without a latent discriminator.
        """
        missing = {"step", "encoder", "ranger", "scaler", "adversary"} - state.keys()
        if missing:
            raise CheckpointError(f"this state of a training lacks {', '.join(sorted(missing))}: it is none of ours")
        if (state["adversary"] is None) != (self.adversary is None):
            found, wanted = ("no", "one") if state["adversary"] is None else ("a", "none")
            raise CheckpointError(
                f"this state of a training has {found} latent discriminator; wanted {wanted}: "
                "go on with the adversarial_weight that it was made with"
            )
        try:
            self.encoder.load_state_dict(state["encoder"])
            self.ranger.load_state_dict(copy.deepcopy(state["ranger"]))  # torch's optimizers keep what they are given
            if self.adversary is not None:
                self.adversary.load_state_dict(copy.deepcopy(state["adversary"]))
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"this state is of another encoder or discriminator: {error}") from error
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step = int(state["step"])
        self._first_view = None

    def _backward(self, images: Tensor, sample_seeds: Sequence[int], stage: int) -> dict[str, Tensor]:
        """Leave the gradient of the whole batch in the encoder's parameters; terms of each image."""
        target = self._target(images, self.settings.weights, is_training=True)
        streams = [stream(self.seed, self.step, "noise", int(each), device=self.device) for each in sample_seeds]
        codes, seen = self._start(len(images))
        terms: dict[str, Tensor] = {}
        learned: dict[str, Tensor] = {}
        for index in range(self.settings.num_passes):
            is_last = index == self.settings.num_passes - 1
            with self._gradients_exchanged(is_last):
                codes = codes + self._pass(images, seen, stage)
                if self.adversary is not None and index == 0:
                    learned = self._discriminate(self.adversary, codes, sample_seeds, stage)
                terms, gradient, seen = self._descend(codes.detach(), target, streams, stage)
                codes.backward(gradient)
            codes = codes.detach()
        return {**terms, **learned}

    def _pass(self, images: Tensor, seen: Tensor | None, stage: int | None) -> Tensor:
        """What the encoder adds to the codes before, [N, K, w_dim], float32."""
        network = self._offsets if self._of_all_workers is None or not self.encoder.training else self._of_all_workers
        with self._precision(self.encoder.training):
            offsets: Tensor = network(images if seen is None else torch.cat([images, seen], dim=1), stage)
        return offsets.float()

    def _descend(
        self, codes: Tensor, target: Target, streams: list[torch.Generator], stage: int
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Terms of each image, the gradient of the mean loss in the codes, and the images that the losses saw."""
        noise = draw_noise(self.generator.config, streams)
        size = math.ceil(len(codes) / self.settings.accumulate)
        found: list[tuple[dict[str, Tensor], Tensor, Tensor]] = []
        for first in range(0, len(codes), size):
            rows = slice(first, first + size)
            leaf = codes[rows].requires_grad_()
            terms, seen = self._terms(
                leaf, target.part(rows), [maps[rows] for maps in noise], stage, self.settings.weights
            )
            loss = self._weighed(terms)
            (gradient,) = torch.autograd.grad(self.scaler.scale(loss.sum() / len(codes)), leaf)
            found.append(({"loss": loss.detach(), **_detached(terms)}, gradient, seen.detach()))
        parts, gradients, views = zip(*found, strict=True)
        return (
            {name: torch.cat([part[name] for part in parts]) for name in parts[0]},
            torch.cat(gradients),
            torch.cat(views),
        )

    def _terms(
        self, codes: Tensor, target: Target, noise: Noise, stage: int, names: Collection[str]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The named terms of each image, [N], and the images that the losses saw, [N, C, h, w] (LSAP, eq. 12).

        L(w) = l2_weight L2 + lpips_weight LPIPS + identity_weight (1 - similarity) + delta_weight delta + sncd_weight
        SNCD, all but the last two between G(w) and x; e4e has its adversarial term in SNCD's place.
        """
        styles = self.generator.styles(codes)  # [N, width] of every layer
        with self._precision(is_training=codes.requires_grad):
            seen = self._view(self.generator.synthesize_styles(styles, noise=noise).image)  # [N, C, h, w]
            features = self.perceptual.features(seen) if "lpips" in names else []
            embedding = self.identity.embed(seen) if self.identity is not None and "identity" in names else None
        seen = seen.float()
        terms: dict[str, Tensor] = {}
        if "l2" in names:
            terms["l2"] = pixel_error(seen, target.images)
        if "lpips" in names:
            terms["lpips"] = self.perceptual.distance([tap.float() for tap in features], target.features)
        if embedding is not None and target.embedding is not None:
            terms["identity"] = 1 - (embedding.float() * target.embedding).sum(dim=1)
        if "sncd" in names:
            terms["sncd"] = self.sncd.of_styles(styles)[:, : stage + 1].sum(dim=1)  # [N, L] -> [N]
        if "delta" in names:
            terms["delta"] = delta_distance(codes, stage)
        if "adversarial" in names and self.adversary is not None:
            terms["adversarial"] = self.adversary.encoder_loss(codes, stage)
        if "w_norm" in names:
            terms["w_norm"] = w_norm(codes, self.encoder.w_avg)
        return terms, seen

    def _weighed(self, terms: dict[str, Tensor]) -> Tensor:
        """The loss of each image, [N]."""
        weighed = [weight * terms[name] for name, weight in self.settings.weights.items() if name in terms]
        return torch.stack(weighed).sum(dim=0)

    def _discriminate(
        self, adversary: LatentAdversary, codes: Tensor, sample_seeds: Sequence[int], stage: int
    ) -> dict[str, Tensor]:
        """The discriminator's step on the codes of all workers, sorted so that every split gives the same order."""
        seeds = torch.tensor(list(sample_seeds), dtype=torch.int64)
        if num_workers() > 1:
            seeds = gather(seeds.to(self.device)).cpu()
        order = seeds.argsort(stable=True)
        whole = gather(codes)[order.to(self.device)]
        return adversary.learn(whole, seeds[order].tolist(), stage=stage, step=self.step)

    def _start(self, num_images: int) -> tuple[Tensor, Tensor | None]:
        """Codes before the first pass, and what an iterative encoder sees beside the images."""
        codes = self.encoder.w_avg.expand(num_images, -1, -1)
        if not self.settings.is_iterative:
            return codes, None
        if self._first_view is None:
            with torch.no_grad():
                self._first_view = self._view(self.generator.synthesize(codes[:1]))
        return codes, self._first_view.expand(num_images, -1, -1, -1)

    @torch.no_grad()
    def _target(self, images: Tensor, names: Collection[str], *, is_training: bool) -> Target:
        with self._precision(is_training):  # that of the reconstruction, so that equal images are at distance 0
            features = self.perceptual.features(images) if "lpips" in names else []
            embedding = self.identity.embed(images) if self.identity is not None and "identity" in names else None
        return Target(images, [tap.float() for tap in features], None if embedding is None else embedding.float())

    def _encode(self, images: Tensor) -> Tensor:
        """Codes [N, K, w_dim] in eval mode; the encoder is then as it was."""
        was_training = self.encoder.training
        self.encoder.eval()
        try:
            codes, seen = self._start(len(images))
            for index in range(self.settings.num_passes):
                if index > 0:
                    seen = self._view(self.generator.synthesize(codes))
                codes = codes + self._pass(images, seen, None)
        finally:
            self.encoder.train(was_training)
        return codes

    def _view(self, images: Tensor) -> Tensor:
        return comparison_view(images, content_box=self.generator.config.content_box)

    def _precision(self, is_training: bool) -> contextlib.AbstractContextManager[Any]:
        if not is_training or self.settings.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.settings.precision))

    def _gradients_exchanged(self, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        """Workers exchange gradients once in a step, in its last backward pass."""
        if is_last or self._of_all_workers is None:
            return contextlib.nullcontext()
        return self._of_all_workers.no_sync()

    def _remember(self) -> tuple[list[Tensor], dict[str, Any] | None]:
        """What changes before it is known whether the step can be taken."""
        buffers = [buffer.clone() for buffer in self.encoder.buffers()]
        return buffers, None if self.adversary is None else copy.deepcopy(self.adversary.state_dict())

    @torch.no_grad()
    def _restore(self, before: tuple[list[Tensor], dict[str, Any] | None]) -> None:
        buffers, adversary = before
        for buffer, old in zip(self.encoder.buffers(), buffers, strict=True):
            buffer.copy_(old)
        if self.adversary is not None and adversary is not None:
            self.adversary.load_state_dict(adversary)
        self.ranger.zero_grad(set_to_none=True)
        if self.scaler.is_enabled():  # the old one waits for a step that is not taken
            scale = self.scaler.state_dict()
            self.scaler = torch.amp.GradScaler(self.device.type)
            self.scaler.load_state_dict(scale)

    def _read(self, terms: dict[str, Tensor], before: tuple[list[Tensor], dict[str, Any] | None]) -> dict[str, float]:
        """The means of all terms: the one place where a step waits for the device."""
        values = torch.stack([value.float().mean() for value in terms.values()])
        is_finite = values.isfinite()  # the gradient's comes last
        claims = all_workers(torch.stack([is_finite[:-1].all(), is_finite[-1]]))
        *means, terms_finite, gradient_finite = torch.cat([values, claims]).tolist()
        logged = dict(zip(terms, means, strict=True))
        if self.scaler.is_enabled():
            logged["loss_scale"] = self.scaler.get_scale()
            # The scaler leaves such a step out and halves the scale; below 1 that no longer helps.
            gradient_finite = gradient_finite or logged["loss_scale"] > SMALLEST_LOSS_SCALE
        if not (terms_finite and gradient_finite):
            self._restore(before)
            found = ", ".join(f"{name} {value:g}" for name, value in logged.items())
            raise TrainingDivergedError(
                f"step {self.step}: the loss or its gradient is not finite on some worker ({found} here); nothing was "
                "changed: look for damaged images, lower learning_rate, or go on from an earlier checkpoint"
            )
        return logged

    def _check_images(self, images: Tensor) -> None:
        config = self.encoder.config
        wanted = (config.image_channels, *config.input_size)
        if images.ndim != 4 or images.shape[1:] != wanted or not len(images):
            raise ShapeError(
                f"images are {list(images.shape)}; this training wants [N, {', '.join(map(str, wanted))}] with N > 0: "
                "bring them to the encoder's input size with `comparison_view`"
            )

    def _check_batch(self, images: Tensor, sample_seeds: Sequence[int]) -> None:
        self._check_images(images)
        share = self.settings.batch_size // num_workers()
        if len(images) != share or len(sample_seeds) != share:
            raise ShapeError(
                f"{len(images)} images with {len(sample_seeds)} seeds; wanted {share} of both, "
                f"batch_size {self.settings.batch_size} over {num_workers()} workers"
            )


class _Offsets(nn.Module):
    """`Encoder.offsets` as a module, the form in which gradients of several workers are averaged."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor, stage: int | None) -> Tensor:
        return self.encoder.offsets(images, stage=stage)


def _average_gradients(network: _Offsets, settings: EncoderTrainingSettings) -> DistributedDataParallel:
    # Buffers need no exchange: batch statistics are the same everywhere. torch 2.15 has a new name for saying so, and
    # warns of the old one.
    names = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    options: dict[str, Any] = {buffers: False}
    return DistributedDataParallel(network, find_unused_parameters=settings.progressive_start is not None, **options)


def _detached(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in terms.items()}


def _check_parts(
    encoder: Encoder,
    generator: Generator,
    anchor: Anchor,
    identity: IdentityNetwork | None,
    settings: EncoderTrainingSettings,
) -> None:
    config = encoder.config
    for name in ("heads", "is_iterative"):
        if getattr(config, name) != getattr(settings, name):
            raise ConfigError(
                f"{name} of the encoder is {getattr(config, name)!r}; wanted {getattr(settings, name)!r}, "
                "as in the settings of its training"
            )
    fitting = EncoderConfig.for_generator(generator.config, heads=config.heads, backbone=config.backbone)
    for name in ("num_ws", "w_dim", "image_channels", "input_size"):
        if getattr(config, name) != getattr(fitting, name):
            raise ConfigError(
                f"{name} of the encoder is {getattr(config, name)}; its generator wants {getattr(fitting, name)}: "
                "build the encoder with `EncoderConfig.for_generator`"
            )
    if any(parameter.requires_grad for parameter in generator.parameters()):
        raise ConfigError("the generator has weights that want a gradient; wanted a frozen one: call `freeze`")
    if settings.identity_weight > 0 and identity is None:
        raise ConfigError(
            f"identity_weight is {settings.identity_weight} without an identity network: name one as identity, or set "
            "identity_weight to 0"
        )
    if settings.sncd_weight > 0 and anchor.style_set == "full":
        raise ConfigError(
            'the anchor is of style set "full", where several layers read one row of W+; wanted "authors" or "conv"'
        )
    if settings.batch_size % num_workers():
        raise ConfigError(
            f"batch_size is {settings.batch_size} for {num_workers()} workers; wanted a multiple, "
            "because every worker takes equally many images"
        )
