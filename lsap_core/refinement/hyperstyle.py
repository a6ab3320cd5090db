"""Refinement by a hypernetwork, which predicts how the generator's weights change (Alaluf et al. 2022, HyperStyle)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator, Noise, StyleShift
from lsap_core.images import Downsampling, comparison_view
from lsap_core.inversion.inversion import NOT_STOPPED
from lsap_core.refinement.hyperstyle_networks import HyperBackbone, HyperNetwork, HyperStyleConfig
from lsap_core.refinement.refinement import Embedded, Refinement, RefinementParts, StateArray
from lsap_core.refinement.tuned_weights import TunedGenerator, noise_like

MOST_PASSES = 10_000
DIMENSIONS = ("output_channel", "input_channel", "kernel_row", "kernel_column")


@dataclass(frozen=True)
class HyperStyleSettings:
    """How a hypernetwork is asked, and which one it is.

    Attributes:
        num_passes: through the hypernetwork; 5 is published.
        layers: of the generator that it changes, in execution order over convolutions and ToRGB layers; None for the
            medium and fine convolutions, as the released network for faces does.
        backbone: "resnet_34" (published), "resnet_34_separable" (its ablation) or "small" (small domains).

    Raises:
        ConfigError: a value lies outside its range.
    """

    kind: ClassVar[str] = "hyperstyle"
    needs_networks: ClassVar[bool] = True
    restores_alone: ClassVar[bool] = False
    goes_back: ClassVar[bool] = False
    trace_steps: ClassVar[tuple[int, ...]] = ()  # it minimizes nothing
    trace_terms: ClassVar[tuple[str, ...]] = ()

    num_passes: int = 5
    layers: tuple[int, ...] | None = None
    backbone: HyperBackbone = "resnet_34"

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        if not 1 <= self.num_passes <= MOST_PASSES:
            raise ConfigError(f"num_passes is {self.num_passes}; wanted at least 1, and at most {MOST_PASSES:,}")
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))  # a list, where a file was read
        if self.backbone not in get_args(HyperBackbone):
            raise ConfigError(f'backbone is "{self.backbone}"; wanted one of {", ".join(get_args(HyperBackbone))}')

    @property
    def num_steps(self) -> int:
        """A step is a pass."""
        return self.num_passes

    def refiner(self, parts: RefinementParts) -> HyperStyleRefiner:
        """Asks the hypernetwork of these parts.

        Raises:
            ConfigError: the networks are none of HyperStyle, or of another generator, or change other layers.
        """
        network = parts.networks
        if not isinstance(network, HyperNetwork):
            raise ConfigError(f"the networks are a {type(network).__name__}; wanted the HyperNetwork of HyperStyle")
        return HyperStyleRefiner(parts.generator, network=network, settings=self)

    def state_arrays(self, generator: GeneratorConfig) -> tuple[StateArray, ...]:
        """An array for each changed layer: by what factor, less one, each of its weights is multiplied."""
        return offset_arrays(self.config(generator))

    def config(self, generator: GeneratorConfig) -> HyperStyleConfig:
        """Sizes of the hypernetwork that is wanted for a generator."""
        return HyperStyleConfig.for_generator(generator, backbone=self.backbone, layers=self.layers)

    def why_stopped(self, step: int) -> tuple[str, str]:
        """Reason and message of an image whose offsets were no longer finite after a pass."""
        return "non_finite_offsets", (
            f"the offsets of the generator's weights were no longer finite in pass {step + 1} of {self.num_passes}: "
            "take this image out, or another hypernetwork"
        )


class HyperStyleState:
    """Offsets on their way through the passes.

    Attributes:
        step: passes made.
        w_plus: codes of the embedding, [N, K, w_dim].
        noise: of the embedding.
        offsets: of each changed layer by its index, [N, out, in, k, k], summed over the passes; the last finite ones.
        stopped_at: [N] int64, the pass whose offsets were not finite, or -1.
    """

    def __init__(self, embedded: Embedded, config: HyperStyleConfig):
        self.step = 0
        self.w_plus = embedded.w_plus
        self.noise = embedded.noise
        num_images = len(self.w_plus)
        self.offsets = {
            layer.index: self.w_plus.new_zeros(num_images, *config.offset_shape(layer)) for layer in config.tuned_layers
        }
        self.stopped_at = torch.full((num_images,), NOT_STOPPED, device=self.w_plus.device)

    def to_tensors(self) -> dict[str, Tensor]:
        """The whole state as named tensors on the CPU, for storage."""
        tensors = {"step": torch.tensor(self.step), "stopped_at": self.stopped_at}
        tensors |= {array_name(index): offsets for index, offsets in self.offsets.items()}
        return {name: tensor.cpu().clone() for name, tensor in tensors.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a state that `to_tensors` returned; the next pass then goes on bit for bit.

        Raises:
            ShapeError: the state belongs to another batch or hypernetwork.
        """
        self.offsets = _checked_offsets(tensors, self.offsets)
        self.step = int(tensors["step"])
        self.stopped_at = tensors["stopped_at"].to(self.stopped_at)


class HyperStyleRefiner:
    """Asks a hypernetwork how the weights change for each image of a batch, each image for itself (section 3.4).

    Pass t looks at the image and at G(w; W (1 + D_(t-1))), and D_t = D_(t-1) + H(image, reconstruction); D_0 = 0. The
    sum is of offsets, not of factors. The code never changes.
    """

    def __init__(self, generator: Generator, *, network: HyperNetwork, settings: HyperStyleSettings):
        """Both networks are put into eval mode: in training mode an image's offsets depend on its neighbours.

        Raises:
            ConfigError: the hypernetwork is of another generator, or is not the one that the settings describe.
        """
        if problem := misfit(network.config, generator.config, settings):
            raise ConfigError(problem)
        self.generator = generator.eval()
        self.network = network.eval()
        self.settings = settings
        self.tuned = TunedGenerator(generator)

    @property
    def state_arrays(self) -> tuple[StateArray, ...]:
        """Offsets of each changed layer."""
        return offset_arrays(self.network.config)

    def start(self, embedded: Embedded, target: Tensor, seeds: Sequence[int]) -> HyperStyleState:
        """The state before the first pass; neither images nor seeds are looked at.

        Raises:
            ShapeError: codes, noise or images do not fit the generator or each other.
        """
        self._check_target(target, len(embedded.w_plus))
        return self.start_at(embedded)

    def start_at(self, embedded: Embedded) -> HyperStyleState:
        """The same for images that are given to `make_pass`.

        Raises:
            ShapeError: codes or noise do not fit the generator or each other.
        """
        config, w_plus = self.generator.config, embedded.w_plus
        if tuple(w_plus.shape[1:]) != (config.num_ws, config.w_dim):
            raise ShapeError(
                f"codes are {list(w_plus.shape)}; this generator wants W+ [N, {config.num_ws}, {config.w_dim}]"
            )
        if not isinstance(embedded.noise, str):
            self.generator.check_noise(embedded.noise, len(w_plus))
        return HyperStyleState(self._like_the_generator(embedded), self.network.config)

    def advance(
        self,
        state: HyperStyleState,
        target: Tensor,
        *,
        until: int | None = None,
        after_step: Callable[[HyperStyleState], None] | None = None,
    ) -> None:
        """Make passes up to pass `until` (all of them by default), in place.

        Args:
            state: from `start`, or loaded.
            target: the images, [N, C, R, R] in [-1, 1]; the same ones at every call.
            until: stop before this pass.
            after_step: called with the state after every pass.

        Raises:
            ShapeError: the images do not fit the generator or the state.
        """
        self._check_target(target, len(state.w_plus))
        # Files are read antialiased, as in the published training; reconstructions are averaged, as there.
        view = hyper_view(target.to(state.w_plus), self.network.config, downsampling="bilinear")
        last = self.settings.num_passes if until is None else min(until, self.settings.num_passes)
        while state.step < last:
            self.make_pass(state, view)
            if after_step is not None:
                after_step(state)

    @torch.no_grad()
    def make_pass(self, state: HyperStyleState, view: Tensor) -> None:
        """One pass, in place, with images [N, C, h, w] in about [-1, 1] that have the network's input size already.

        Raises:
            ShapeError: they have another size.
        """
        offsets = state.offsets if state.step else {}  # before the first pass the generator is its own
        reconstruction = self.tuned.synthesize(
            state.w_plus, changed_weights(self.tuned, self.network.config, offsets), noise=state.noise
        )
        seen = hyper_view(reconstruction, self.network.config)
        moved = {
            index: state.offsets[index] + added for index, added in self.network(torch.cat([view, seen], dim=1)).items()
        }
        claims = [offsets.isfinite().flatten(1).all(dim=1) for offsets in moved.values()]
        is_finite = torch.stack(claims).all(dim=0)  # [N]
        stops = ~is_finite & (state.stopped_at == NOT_STOPPED)
        state.stopped_at = torch.where(stops, state.step, state.stopped_at)
        moves = (state.stopped_at == NOT_STOPPED)[:, None, None, None, None]
        state.offsets = {index: torch.where(moves, moved[index], before) for index, before in state.offsets.items()}
        state.step += 1

    def finish(self, state: HyperStyleState) -> Refinement:
        """The result."""
        return Refinement(
            refined=RefinedByHyperStyle(self.tuned, self.network.config, state.w_plus, state.noise, state.offsets),
            num_steps=torch.where(state.stopped_at == NOT_STOPPED, state.step, state.stopped_at),
            stopped_at=state.stopped_at,
            trace=state.w_plus.new_zeros(len(state.w_plus), 0, 0),
        )

    def restore(self, embedded: Embedded, arrays: Mapping[str, Tensor]) -> RefinedByHyperStyle:
        """The refined images whose codes and offsets these are.

        Raises:
            ShapeError: offsets are missing, or are not those of this hypernetwork.
        """
        state = self.start_at(embedded)
        offsets = _checked_offsets(arrays, state.offsets)
        return RefinedByHyperStyle(self.tuned, self.network.config, state.w_plus, state.noise, offsets)

    def _like_the_generator(self, embedded: Embedded) -> Embedded:
        like = self.tuned.parameter("const")
        return Embedded(embedded.w_plus.detach().to(like), noise_like(embedded.noise, like))

    def _check_target(self, target: Tensor, num_images: int) -> None:
        config = self.generator.config
        wanted = [num_images, *config.image_shape]
        if list(target.shape) != wanted:
            raise ShapeError(f"target images are {list(target.shape)}; wanted {wanted}")


@dataclass(frozen=True)
class RefinedByHyperStyle:
    """Images of a generator whose weights were changed for each of them.

    Attributes:
        tuned: the generator.
        config: of the hypernetwork: which layers were changed.
        w_plus: codes of the embedding, [N, K, w_dim].
        noise: of the embedding.
        offsets: of each changed layer by its index, [N, out, in, k, k]; k is 1 where one number serves the kernel.
    """

    tuned: TunedGenerator
    config: HyperStyleConfig
    w_plus: Tensor
    noise: Noise
    offsets: dict[int, Tensor]

    def synthesize(self, w_plus: Tensor | None = None, style_shift: StyleShift | None = None) -> Tensor:
        """Images [N, C, R, R], unclamped, of the embedding's codes, or of edits in W+ and S, with the same weights."""
        codes = self.w_plus if w_plus is None else w_plus
        weights = changed_weights(self.tuned, self.config, self.offsets)
        return self.tuned.synthesize(codes, weights, noise=self.noise, style_shift=style_shift)

    def arrays(self) -> dict[str, Tensor]:
        """Offsets of each changed layer, float32 [N, out, in, k, k]."""
        return {array_name(index): offsets.float() for index, offsets in self.offsets.items()}


def changed_weights(
    tuned: TunedGenerator, config: HyperStyleConfig, offsets: Mapping[int, Tensor]
) -> dict[str, Tensor]:
    """W (1 + offsets) of each layer that has offsets, [N, out, in, k, k] (section 3.3), with gradients to them."""
    layers = {layer.index: layer.name for layer in config.tuned_layers}
    return {layers[index]: tuned.parameter(layers[index]) * (1 + values) for index, values in offsets.items()}


def hyper_view(images: Tensor, config: HyperStyleConfig, *, downsampling: Downsampling = "area") -> Tensor:
    """Images [N, C, R, R] as a hypernetwork reads them, [N, C, h, w]: the content box, averaged to its input size.

    Published networks read 256 pixels, which small images are repeated to.
    """
    view = comparison_view(images, content_box=config.generator.content_box, downsampling=downsampling)
    return view if tuple(view.shape[-2:]) == config.input_size else F.interpolate(view, config.input_size, mode="area")


def offset_arrays(config: HyperStyleConfig) -> tuple[StateArray, ...]:
    """What is kept of an image: offsets of each changed layer."""
    return tuple(
        StateArray(array_name(layer.index), config.offset_shape(layer), DIMENSIONS) for layer in config.tuned_layers
    )


def array_name(index: int) -> str:
    """Name of the array of a layer's offsets, by its index."""
    return f"offsets_{index:02d}"


def misfit(network: HyperStyleConfig, generator: GeneratorConfig, settings: HyperStyleSettings) -> str | None:
    """Why a hypernetwork cannot be used for a generator with these settings, in a sentence; None where it can."""
    if network.generator != generator:
        return (
            f"the hypernetwork was made for {network.generator}, this is {generator}: pass the generator and content "
            "box that it was trained for, or another hypernetwork"
        )
    wanted = settings.config(generator)
    for name in ("layers", "backbone"):
        if getattr(network, name) != getattr(wanted, name):
            return (
                f"{name} of the hypernetwork: {getattr(network, name)}; the settings say {getattr(wanted, name)}: "
                f"set {name} to what it has, or pass another hypernetwork"
            )
    return None


def _checked_offsets(arrays: Mapping[str, Tensor], like: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Offsets by layer, in the type and on the device of others of the same shapes."""
    found = {}
    for index, wanted in like.items():
        values = arrays.get(array_name(index))
        if values is None or values.shape != wanted.shape:
            raise ShapeError(
                f"{array_name(index)} are {'missing' if values is None else list(values.shape)}; wanted "
                f"{list(wanted.shape)}: pass the arrays of these images, and the hypernetwork that they were made with"
            )
        found[index] = values.detach().to(wanted)
    return found
