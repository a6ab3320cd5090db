"""Operators of a piece of work one by one: time, floating-point operations and bytes, by the part that asked for them.

Every operator is caught below autograd, in forward and backward alike. In the forward pass the call stack says which
file of `lsap_core` asked for it; in the backward pass the operator belongs to the part whose forward pass made the node
of the graph (both have its sequence number).
"""

from __future__ import annotations

import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from lsap_core.generators import Generator

FORWARD, BACKWARD = "forward", "backward"
STEP, OPTIMIZER, GENERATOR = "the step itself", "optimizer", "generator"
PARTS = {
    "perceptual/": "perceptual distance",
    "alignment/": "SNCD",
    "spaces/": "SNCD",
    "images.py": "comparison view",
    "objectives/terms.py:noise_regularization": "noise regularization",
    "objectives/": "other terms",
    "inversion/noise_maps.py:normalize_noise_": "noise normalization",
    "inversion/noise_maps.py": "random numbers",
    "inversion/steps_ahead.py": "random numbers",
    "inversion/adam.py": OPTIMIZER,
    "generators/generator.py:styles": "styles",
    "generators/style_matrices.py": "styles",
    "generators/": GENERATOR,
}
"""What a file (or one function of it) belongs to; the outermost of a call counts."""
CORE = str(Path(sys.modules["lsap_core.generators"].__file__ or "").parents[1]) + "/"
TORCH_OPTIMIZERS = str(Path(torch.optim.__file__).parent)
CALIBRATION_CALLS = 300
SLEEP_CYCLES = 200_000
"""Of a GPU before an operator: about 0.1 ms, in which the operator is waiting to start when it wakes up."""


@dataclass
class Tally:
    """What operators took together.

    Attributes:
        operators: how many.
        seconds: of the operators' work, without what lies between them and, on a CPU, without what calling one costs.
        flops: of convolutions and matrix products, 2 for a multiplication and an addition.
        moved_bytes: of all tensors that operators read and write; views move nothing.
        bound_seconds: what the roofline allows each of the operators, summed.
    """

    operators: int = 0
    seconds: float = 0.0
    flops: int = 0
    moved_bytes: int = 0
    bound_seconds: float = 0.0


class Roofline:
    """The most that the device gives: operations and bytes a second.

    Attributes:
        peak_flops: the best rate of float32 matrix products.
        peak_bandwidth: the best rate of copying more than a cache holds, bytes read and written.
    """

    def __init__(self, peak_flops: float, peak_bandwidth: float):
        self.peak_flops = peak_flops
        self.peak_bandwidth = peak_bandwidth

    def bound(self, flops: float, moved_bytes: float) -> float:
        """The fewest seconds."""
        return max(flops / self.peak_flops, moved_bytes / self.peak_bandwidth)


class OperatorTimer(TorchDispatchMode):
    """Times and counts all operators that run inside it, by (part, pass)."""

    def __init__(self, generator: Generator, device: torch.device, roofline: Roofline):
        super().__init__()
        self.tallies: dict[tuple[str, str], Tally] = defaultdict(Tally)
        self._sides = _sides(generator)
        self._measure: Callable[[Callable[[], Any]], tuple[Any, float]] = _on_cuda if device.type == "cuda" else _on_cpu
        self._roofline = roofline
        self._part_of_node: dict[int, str] = {}
        self._call_seconds = 0.0
        if device.type == "cpu":
            self._call_seconds = self._seconds_of_a_call()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator, and write down what it was."""
        kwargs = kwargs or {}
        result, seconds = self._measure(lambda: function(*args, **kwargs))
        node = torch._C._current_autograd_node()
        if node is None:
            part, passed = self._part(result), FORWARD
            self._part_of_node.setdefault(torch.autograd._get_sequence_nr() - 1, part)  # type: ignore[attr-defined]
        else:
            part, passed = self._part_of_node.get(node._sequence_nr(), STEP), BACKWARD
        count = flop_registry.get(function._overloadpacket)
        flops = int(count(*args, **kwargs, out_val=result)) if count else 0
        moved = _moved_bytes(function, (*args, *kwargs.values()), result)
        tally = self.tallies[part, passed]
        tally.operators += 1
        tally.seconds += max(seconds - self._call_seconds, 0.0)
        tally.flops += flops
        tally.moved_bytes += moved
        tally.bound_seconds += self._roofline.bound(flops, moved)
        return result

    def _seconds_of_a_call(self) -> float:
        """What an operator costs in here that has hardly anything to do, and a node of the graph for it."""
        value = torch.ones(1, requires_grad=True)
        with self:
            for _ in range(CALIBRATION_CALLS):
                (value * value).backward()  # type: ignore[no-untyped-call]
        calls, seconds = (
            sum(getattr(tally, name) for tally in self.tallies.values()) for name in ("operators", "seconds")
        )
        self.tallies.clear()
        self._part_of_node.clear()
        return float(seconds / calls)

    def _part(self, result: Any) -> str:
        part, side = STEP, None
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            code = frame.f_code
            found = _part_of_file(code.co_filename, code.co_name)
            if found == GENERATOR and side is None:
                side = self._sides.get(id(frame.f_locals.get("self")))
            part = found or part
            frame = frame.f_back
        if part != GENERATOR:
            return part
        # What lies between the layers is the sum of the RGB layers, of the side that it has.
        shapes = [leaf.shape for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        return f"{GENERATOR}, {side or (shapes[0][-1] if shapes and shapes[0] else 0)} px"


@cache
def _part_of_file(path: str, function: str) -> str | None:
    if path.startswith(TORCH_OPTIMIZERS):
        return OPTIMIZER
    if not path.startswith(CORE):
        return None
    name = f"{path.removeprefix(CORE)}:{function}"
    return next((part for prefix, part in PARTS.items() if name.startswith(prefix)), None)


def _sides(generator: Generator) -> dict[int, int]:
    """Longer output side of every layer of the generator, by identity."""
    sides = [max(size) for size in generator.config.noise_sizes]
    convs = zip(generator.synthesis.conv_layers(), sides, strict=True)
    to_rgbs = zip(generator.synthesis.to_rgb_layers(), sides[::2], strict=True)
    layers: Iterable[tuple[nn.Module, int]] = (*convs, *to_rgbs)
    return {id(module): side for layer, side in layers for module in layer.modules()}


def _moved_bytes(function: Any, inputs: Iterable[Any], result: Any) -> int:
    returns = function._schema.returns
    if any(one.alias_info is not None and not one.alias_info.is_write for one in returns):
        return 0  # a view
    written = [] if function._schema.name.startswith("aten::empty") else tree_leaves(result)
    return sum(_bytes(leaf) for leaf in (*tree_leaves(tuple(inputs)), *written) if isinstance(leaf, Tensor))


def _bytes(tensor: Tensor) -> int:
    """What lies in memory of a tensor; expanded dimensions lie there once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, stride in sizes if stride) * tensor.element_size()


def _on_cpu(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.thread_time_ns()
    result = call()
    return result, (time.thread_time_ns() - start) / 1e9


def _on_cuda(call: Callable[[], Any]) -> tuple[Any, float]:
    """Time of the kernels alone: the device sleeps until they are queued, so that it never waits for Python."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(SLEEP_CYCLES)
    start.record()  # type: ignore[no-untyped-call]
    result = call()
    end.record()  # type: ignore[no-untyped-call]
    end.synchronize()  # type: ignore[no-untyped-call]
    return result, start.elapsed_time(end) / 1e3  # type: ignore[no-untyped-call]


def measure_roofline(device: torch.device, *, repeats: int = 3) -> Roofline:
    """What the device gives now: the best of some matrix products in float32, and of some copies."""
    side, values = (8192, 1 << 28) if device.type == "cuda" else (2048, 1 << 26)
    a, b = torch.randn(2, side, side, device=device).unbind()
    source, copy = torch.zeros(2, values, device=device).unbind()
    product = torch.empty_like(a)
    multiply = min(_seconds(lambda: torch.mm(a, b, out=product), device) for _ in range(repeats + 1))
    move = min(_seconds(lambda: copy.copy_(source), device) for _ in range(repeats + 1))
    return Roofline(2 * side**3 / multiply, 2 * 4 * values / move)


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    return (_on_cuda if device.type == "cuda" else _on_cpu)(call)[1]
