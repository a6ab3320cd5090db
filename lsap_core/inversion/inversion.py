"""What an embedding returns, and what every method that embeds looks like: its settings, its embedder, its state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from lsap_core.alignment.anchor import Anchor
from lsap_core.encoders.encoder import Encoder
from lsap_core.generators.generator import Generator

if TYPE_CHECKING:
    from lsap_core.inversion.compilation import Compilation

NOT_STOPPED = -1


@dataclass(frozen=True)
class Inversion:
    """Codes, the noise that belongs to them, and how they were found.

    Attributes:
        w_plus: [N, K, w_dim]; a W code is repeated over the K rows.
        noise: one map for each convolution, [N, 1, side, side]; edits must reuse them.
        reconstruction: the image of these codes with this noise, [N, C, R, R], unclamped.
        trace: recorded loss terms, [N, recorded steps, terms]; NaN where an image had stopped.
        trace_steps: the recorded steps.
        trace_terms: names of the terms.
        stopped_at: step at which an image's loss was no longer finite, or -1; its codes are the last finite ones.
        num_steps: steps that each image took, [N] int64, on the CPU; those of one that was not finite count to the end.
    """

    w_plus: Tensor
    noise: tuple[Tensor, ...]
    reconstruction: Tensor
    trace: Tensor
    trace_steps: tuple[int, ...]
    trace_terms: tuple[str, ...]
    stopped_at: Tensor
    num_steps: Tensor


class PerceptualDistance(Protocol):
    """A perceptual network that lets the features of a fixed target be computed once."""

    def features(self, images: Tensor) -> list[Tensor]:
        """Features of images [N, C, H, W] in [-1, 1]."""
        ...

    def distance(self, features: list[Tensor], target_features: list[Tensor]) -> Tensor:
        """One distance for each image, [N]."""
        ...


@dataclass(frozen=True)
class Parts:
    """What embedders are built from; each takes what it needs.

    Attributes:
        generator: of the images; frozen.
        anchor: of the generator.
        perceptual: the network of the loss.
        encoder: the method's encoder, or None.
        num_passes: through the encoder of a method that only starts at its codes.
        compilation: what compiles the steps of an optimization, or None.
    """

    generator: Generator
    anchor: Anchor
    perceptual: PerceptualDistance
    encoder: Encoder | None = None
    num_passes: int = 1
    compilation: Compilation | None = None


class EmbedderState(Protocol):
    """Where the embedding of a batch stands; everything that the next step depends on."""

    @property
    def step(self) -> int:
        """Steps taken, by the image that is least far."""
        ...

    def to_tensors(self) -> dict[str, Tensor]:
        """The whole state as named tensors on the CPU, for storage."""
        ...

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a state that `to_tensors` returned; the next step then goes on bit for bit."""
        ...


State = TypeVar("State", bound=EmbedderState)


class Embedder(Protocol[State]):
    """Image embedding: images in, codes out (LSAP, section 3.1), in steps between which it may be interrupted."""

    @property
    def settings(self) -> EmbeddingSettings:
        """What it was built from."""
        ...

    def start(self, seeds: Sequence[int], *, target: Tensor) -> State:
        """The state before the first step: of images [N, C, R, R] in [-1, 1], each with its own seed's random state."""
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

    def finish(self, state: State) -> Inversion:
        """The result."""
        ...


@runtime_checkable  # for parameters of runs that hold methods
class EmbeddingSettings(Protocol):
    """What a method says of itself: a frozen dataclass, one class for each kind of method.

    Attributes:
        kind: what archives call methods of this class.
        keeps_noise: whether every image gets noise maps of its own; else the generator's constant ones belong to it.
        trace_terms: names of the loss terms that are recorded; none where nothing is minimized.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    kind: ClassVar[str]
    keeps_noise: ClassVar[bool]
    trace_terms: ClassVar[tuple[str, ...]]

    @property
    def trace_steps(self) -> tuple[int, ...]:
        """The steps whose loss terms are recorded."""
        ...

    @property
    def num_steps(self) -> int:
        """Steps of its embedder: what a batch costs, and what progress is counted in."""
        ...

    @property
    def needs_encoder(self) -> bool:
        """Whether an encoder is asked, for codes or for where they start."""
        ...

    def embedder(self, parts: Parts) -> Embedder[Any]:
        """Builds the embedder.

        Raises:
            ConfigError: the parts do not fit each other or these settings.
        """
        ...

    def why_stopped(self, step: int) -> tuple[str, str]:
        """Reason and message of an image whose numbers were no longer finite at a step."""
        ...
