"""What a refinement returns, and what every refiner looks like: its settings, itself, its state.

Result refinement is the second stage of GAN inversion (LSAP, section 3.1): it brings back what a code alone cannot
hold. What it finds of an image (features, masks, differences of weights) is kept as arrays beside the code, and renders
the inversion and any edit of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator, Noise, StyleShift
from lsap_core.inversion.inversion import EmbedderState, PerceptualDistance

STORED_DTYPE = torch.float16


@dataclass(frozen=True)
class Embedded:
    """What is refined: codes of any embedding, and the noise that belongs to them.

    Attributes:
        w_plus: [N, K, w_dim].
        noise: as `Generator.synthesize` takes it: "constant", or one map for each convolution, [N or 1, 1, side, side].
    """

    w_plus: Tensor
    noise: Noise = "constant"


@dataclass(frozen=True)
class StateArray:
    """An array that a refiner keeps of every image.

    Attributes:
        name: small letters, digits and underscores.
        shape: of one image's part.
        dimensions: a name for each of them.
    """

    name: str
    shape: tuple[int, ...]
    dimensions: tuple[str, ...]


class Refined(Protocol):
    """Images brought closer to their photos; renders the inversion and any edit of it."""

    @property
    def w_plus(self) -> Tensor:
        """Codes [N, K, w_dim] of the refined inversion: edits start from these."""
        ...

    def synthesize(self, w_plus: Tensor | None = None, style_shift: StyleShift | None = None) -> Tensor:
        """Images [N, C, R, R], unclamped, of the refined inversion, or of an edit of it.

        Args:
            w_plus: edited codes [N, K, w_dim]; equal codes give the refined inversion bit for bit.
            style_shift: added to the styles of the edited codes, as `Generator.styles` takes it: an edit in S.
        """
        ...

    def arrays(self) -> dict[str, Tensor]:
        """What was found beside the codes, by the names that `Refiner.state_arrays` declares: float32 [N, ...]."""
        ...


@dataclass(frozen=True)
class Refinement:
    """Refined images, and how they were found.

    Attributes:
        refined: the images.
        num_steps: steps that each image took, [N] int64.
        stopped_at: step at which an image's loss was no longer finite, or -1, [N] int64; what is kept of it is the last
            finite state.
        trace: recorded loss terms, [N, recorded steps, terms]; NaN where an image had stopped.
        trace_steps: the recorded steps.
        trace_terms: names of the terms.
    """

    refined: Refined
    num_steps: Tensor
    stopped_at: Tensor
    trace: Tensor
    trace_steps: tuple[int, ...] = ()
    trace_terms: tuple[str, ...] = ()


@dataclass(frozen=True)
class RefinementParts:
    """What refiners are built from; each takes what it needs.

    Attributes:
        generator: of the images; frozen.
        perceptual: the network of the loss.
        networks: the refiner's own, or None where it has none.
    """

    generator: Generator
    perceptual: PerceptualDistance
    networks: nn.Module | None = None


State = TypeVar("State", bound=EmbedderState)


class Refiner(Protocol[State]):
    """Result refinement: images and codes in, refined images out, in steps between which it may be interrupted."""

    @property
    def settings(self) -> RefinementSettings:
        """What it was built from."""
        ...

    @property
    def state_arrays(self) -> tuple[StateArray, ...]:
        """The arrays that it keeps of every image."""
        ...

    def start(self, embedded: Embedded, target: Tensor, seeds: Sequence[int]) -> State:
        """The state before the first step.

        Args:
            embedded: codes and noise of N images.
            target: the images, [N, C, R, R] in [-1, 1].
            seeds: of each image's own random state.

        Raises:
            ShapeError: codes, noise or images do not fit the generator or each other.
        """
        ...

    def advance(
        self,
        state: State,
        target: Tensor,
        *,
        until: int | None = None,
        after_step: Callable[[State], None] | None = None,
    ) -> None:
        """Take steps up to step `until` (all of them by default), in place, on the images of `start`."""
        ...

    def finish(self, state: State) -> Refinement:
        """The result."""
        ...

    def restore(self, embedded: Embedded, arrays: Mapping[str, Tensor]) -> Refined:
        """The refined images whose codes and arrays these are; nothing is computed again.

        Args:
            embedded: codes of the refined inversion (`Refined.w_plus`), and the noise of the embedding.
            arrays: as `Refined.arrays` gave them, in any floating point type.

        Raises:
            ShapeError: an array is missing, or does not fit this refiner.
        """
        ...


@runtime_checkable  # for parameters of runs that hold refiners
class RefinementSettings(Protocol):
    """What a refiner says of itself: a frozen dataclass, one class for each kind.

    Attributes:
        kind: what archives call refiners of this class.
        restores_alone: whether it restores what it found without them.
        goes_back: whether its steps compute gradients, which takes memory.
        trace_terms: names of the loss terms that are recorded; none where nothing is minimized.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    kind: ClassVar[str]
    restores_alone: ClassVar[bool]
    goes_back: ClassVar[bool]
    trace_terms: ClassVar[tuple[str, ...]]

    @property
    def needs_networks(self) -> bool:
        """Whether it needs networks of its own."""
        ...

    @property
    def num_steps(self) -> int:
        """Steps of its refiner at most: what a batch costs, and what progress is counted in."""
        ...

    @property
    def trace_steps(self) -> tuple[int, ...]:
        """The steps whose loss terms are recorded."""
        ...

    def refiner(self, parts: RefinementParts) -> Refiner[Any]:
        """Builds the refiner.

        Raises:
            ConfigError: the parts do not fit each other or these settings.
        """
        ...

    def state_arrays(self, generator: GeneratorConfig) -> tuple[StateArray, ...]:
        """What it would keep of every image of such a generator: known before any file is opened."""
        ...

    def why_stopped(self, step: int) -> tuple[str, str]:
        """Reason and message of an image whose numbers were no longer finite at a step."""
        ...


def as_stored(refiner: Refiner[Any], refined: Refined, noise: Noise, *, dtype: torch.dtype = STORED_DTYPE) -> Refined:
    """Refined images as they will be when they are read from arrays of a smaller type: what is measured and shown."""
    arrays = {name: values.to(dtype) for name, values in refined.arrays().items()}
    return refiner.restore(Embedded(refined.w_plus, noise), arrays)
