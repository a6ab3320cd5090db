"""The loss terms of an optimization as one compiled function, where compiling pays; the plain form is the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lsap_core.generators.config import GeneratorConfig
from lsap_core.inversion.loss_terms import LOSS_TERMS, LossArguments, LossTerms

COMPILING_SECONDS = {"cpu": 45.0, "cuda": 90.0}
"""Of a processor, when nothing is kept from before: 41 to 45 were measured; of a GPU's machine an estimate."""
SAVED_SECONDS = {"cpu": 2e-9, "cuda": 1e-10}
"""For each activation of the generator in a step, which are written and read less often: 2e-9 to 1e-8 at 256 pixels."""
SAVED_IF_SMALL, SMALL_SIDE = 1.2e-8, 64
"""The same of generators whose steps are many short operators on a CPU: 1.8e-8 on the digits in batches of 32."""

MOST_OF_AN_ERROR = 300
"""Characters; compilers tell much."""

Evaluate = Callable[[Tensor, Tensor, Sequence[Tensor], Tensor, list[Tensor]], dict[str, Tensor]]
"""Terms of `LossArguments`, by name."""


def compiling_pays(config: GeneratorConfig, image_steps: int, device: str) -> bool:
    """Whether a worker saves more than compiling costs, when nothing is kept from before.

    Args:
        config: of the generator.
        image_steps: images times steps that the worker is about to do.
        device: "cpu" or "cuda"; nothing is known of others, which compile nothing.
    """
    if device not in COMPILING_SECONDS:
        return False
    is_small = device == "cpu" and config.resolution <= SMALL_SIDE
    saved = SAVED_IF_SMALL if is_small else SAVED_SECONDS[device]
    return saved * sum(config.conv_sizes) * image_steps > COMPILING_SECONDS[device]


@dataclass(frozen=True)
class _Key:
    """What a compiled form holds for; the objects by identity: the form keeps them."""

    generator: int
    anchor: int
    perceptual: int
    options: tuple[Any, ...]
    wanted: tuple[str, ...]


class Compilation:
    """Compiled forms of loss terms, each made once and kept as long as this object.

    Shapes are static. A batch of another size than `batch_size`, such as the last one of a shard, takes the plain form:
    compiling again would cost more than it saves. What cannot be compiled takes the plain form too, and is told once.

    Attributes:
        batch_size: images of a batch that is compiled for.
        tell: called with a sentence when a form was compiled, or could not be.
        backend: of `torch.compile`.
    """

    def __init__(self, batch_size: int, *, tell: Callable[[str], None], backend: str = "inductor"):
        self.batch_size = batch_size
        self.tell = tell
        self.backend = backend
        self._forms: dict[_Key, tuple[LossTerms, Evaluate | None]] = {}

    def of(self, terms: LossTerms, weights: Mapping[str, float], arguments: LossArguments) -> Evaluate | None:
        """The compiled form for arguments like these, [N, ...] each, or None where the plain one is to be taken.

        Every term is computed in every step, so that methods which differ by their weights share one form; only LPIPS
        that has no weight is left out.
        """
        clean = arguments[0]
        if len(clean) != self.batch_size:
            return None
        wanted = tuple(name for name in LOSS_TERMS if name != "lpips" or name in weights)
        key = _Key(id(terms.generator), id(terms.anchor), id(terms.perceptual), terms.options, wanted)
        if key not in self._forms:
            self._forms[key] = (terms, self._compiled(terms, wanted, arguments))
        return self._forms[key][1]

    def _compiled(self, terms: LossTerms, wanted: tuple[str, ...], arguments: LossArguments) -> Evaluate | None:
        def evaluate(
            clean: Tensor, explored: Tensor, noise: Sequence[Tensor], view: Tensor, target_features: list[Tensor]
        ) -> dict[str, Tensor]:
            return terms(clean, explored, noise, view, target_features, wanted)

        _ = terms.anchor.by_layer  # kept by a property that takes a lock to make it, which compilers do not know
        is_cuda = arguments[0].is_cuda
        options = _options(is_cuda) if self.backend == "inductor" else None
        form: Evaluate = torch.compile(evaluate, fullgraph=True, dynamic=False, backend=self.backend, options=options)
        try:
            _try(form, arguments)
        except Exception as error:  # of any kind: compilers fail in many ways, and the plain form does the same
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:MOST_OF_AN_ERROR]
            self.tell(
                f"the optimization could not be compiled and runs uncompiled, with the same results: {reason}; "
                "install a compiler (g++, on a GPU Triton), or ask for compile: never"
            )
            return None
        self.tell(f"the optimization of {self.batch_size} images at once is compiled")
        return form


def _try(form: Evaluate, arguments: LossArguments) -> None:
    """Run forward and backward once, which compiles both."""
    clean, explored, noise, view, target_features = arguments
    leaves = [tensor.detach().clone().requires_grad_(True) for tensor in (clean, explored, *noise)]
    found = form(leaves[0], leaves[1], leaves[2:], view, target_features)
    torch.autograd.grad(torch.stack(list(found.values())).sum(), leaves, allow_unused=True)


def _options(is_cuda: bool) -> dict[str, Any]:
    """On a GPU the step as one CUDA graph; on a CPU features stay as they lie: the convolutions here want them so."""
    return {"triton.cudagraphs": True} if is_cuda else {"layout_optimization": False}
