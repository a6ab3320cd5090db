"""StyleGAN2 as GenForce, Hammer, MMGeneration and MMagic name it: other names and shapes, the same network.

The bare `state_dict` of a generator of ours, which says no more than theirs, is read the same way.

Where their conventions differ from those here: GenForce keeps TensorFlow's (the 1 of a style's bias is added when it is
used, and the kernel of an upsampling convolution is stored as for a convolution, so it is turned by half a circle);
Hammer, whose names are GenForce's, and MMGeneration have those of PyTorch. All multiply weights and biases of the
mapping network by 0.01 and weights elsewhere by 1 / sqrt(fan in), unless an option that no file holds said otherwise.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lsap_core.errors import CheckpointError
from lsap_core.generators.checkpoints.canonical import (
    CanonicalCheckpoint,
    Shape,
    canonical_shapes,
    canonical_state,
    check_kernels,
    check_tensors,
    config_from_sizes,
    constant_size,
    first_size,
    largest_index,
)
from lsap_core.generators.config import GeneratorConfig

_GENFORCE_PARTS = {
    "affine.weight": "style.weight",
    "affine.bias": "style.bias",
    "noise_const": "noise",
}
_MMGENERATION_PARTS = {
    "weight": "conv.weight_orig",
    "affine.weight": "conv.style_modulation.linear.weight_orig",
    "affine.bias": "conv.style_modulation.bias",
    "noise_strength": "noise_injector.weight",
}


@dataclass(frozen=True)
class Renaming:
    """How a program writes what is here a canonical state.

    Attributes:
        what: the generator, in messages.
        name: its name of a canonical tensor; that of the mean of W may be missing in a file.
        shape: its shape of one, with the same numbers in the same order.
        kernels: regular expression of the names of FIR filters.
        kernel_gain: what the filters are multiplied by, of which each is the normalized one.
        weight_axis: which axis of a convolution's weight counts its outputs.
        has_tensorflow_values: whether numbers are TensorFlow's, as the text of this file says.
        unlike: names of parts that are no plain StyleGAN2, and what they mean.
        counters: names of numbers that count steps of a training, and are no weights.
        notes: what else no file of the program says.
    """

    what: str
    name: Callable[[str], str]
    shape: Callable[[str, Shape], Shape]
    kernels: str
    kernel_gain: float
    weight_axis: int = 0
    has_tensorflow_values: bool = False
    unlike: Mapping[str, str] = field(default_factory=dict)
    counters: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def from_renamed(state: Mapping[str, Any], renaming: Renaming, mean: Tensor | None = None) -> CanonicalCheckpoint:
    """Canonical form of a generator of another program; every size is read from the shapes.

    Args:
        state: parameters and buffers by the program's names; FIR filters and the mean of W may be left out.
        renaming: how the program writes them.
        mean: of W, [w_dim], where the state does not hold it; None when unknown. Zeros are what all these programs
            start from, and count as unknown.

    Raises:
        CheckpointError: another architecture, or a tensor is missing, unexpected or of another shape.
    """
    for begin, meaning in renaming.unlike.items():
        if any(name.startswith(begin) for name in state):
            raise CheckpointError(f"{renaming.what} has {begin}*, {meaning}")
    config = _read_config(state, renaming)
    shapes = canonical_shapes(config)
    expected = {renaming.name(name): renaming.shape(name, shape) for name, shape in shapes.items()}
    kernels = {name: tensor for name, tensor in state.items() if re.fullmatch(renaming.kernels, name)}
    tensors = {name: value for name, value in state.items() if name not in kernels and name not in renaming.counters}
    w_avg = renaming.name("mapping.w_avg")
    known = tensors.get(w_avg, mean)
    if known is None or (isinstance(known, Tensor) and not bool(known.any())):
        known = torch.full((config.w_dim,), torch.nan)
    tensors[w_avg] = known
    check_tensors(tensors, expected, what=renaming.what)
    flat = {name: kernel.reshape(kernel.shape[-2:]) if kernel.ndim == 4 else kernel for name, kernel in kernels.items()}
    check_kernels(flat, gain=renaming.kernel_gain, what=renaming.what)
    canonical = {name: tensors[renaming.name(name)].reshape(shape) for name, shape in shapes.items()}
    if renaming.has_tensorflow_values:
        canonical = {name: _from_tensorflow(name, tensor) for name, tensor in canonical.items()}
    return CanonicalCheckpoint(config, canonical_state(config, canonical, what=renaming.what))


def _read_config(state: Mapping[str, Any], renaming: Renaming) -> GeneratorConfig:
    constant = constant_size(state.get(renaming.name("synthesis.const")))
    to_rgbs = (renaming.name(f"synthesis.to_rgbs.{index}.weight") for index in itertools.count())
    weights = list(itertools.takewhile(lambda name: name in state, to_rgbs))
    weights = weights or [renaming.name("synthesis.to_rgbs.0.weight")]  # to be missed by its name
    layers = re.escape(renaming.name("mapping.layers.0.bias"))
    first = int(re.findall(r"\d+", layers)[0])
    last = largest_index(layers.replace(str(first), r"(\d+)"), state, default=first)
    try:
        return config_from_sizes(
            renaming.what,
            resolution=max(constant) << (len(weights) - 1),
            channels=tuple(first_size(state, (name, renaming.weight_axis + 1)) for name in weights),
            z_dim=first_size(state, (renaming.name("mapping.layers.0.weight"), 1)),
            w_dim=first_size(state, (renaming.name("synthesis.to_rgbs.0.affine.weight"), 1)),
            num_mapping_layers=last - first + 1,
            image_channels=first_size(state, (weights[0], renaming.weight_axis)),
            constant=constant,
        )
    except CheckpointError as error:
        raise CheckpointError(f"{renaming.what}: {error}") from error


def _from_tensorflow(name: str, tensor: Tensor) -> Tensor:
    if name.endswith(".affine.bias"):
        return tensor + 1
    if (match := re.fullmatch(r"synthesis\.convs\.(\d+)\.weight", name)) and int(match[1]) % 2 == 1:
        return tensor.flip(2, 3)
    return tensor


def _parts_of(name: str) -> tuple[str, int, str]:
    """Room, position and part of a canonical name, such as ("convs", 3, "affine.bias")."""
    match = re.fullmatch(r"(?:mapping|synthesis)\.(layers|convs|to_rgbs)\.(\d+)\.(.+)", name)
    assert match is not None, name
    return match[1], int(match[2]), match[3]


def _genforce_name(name: str) -> str:
    if name in {"synthesis.const", "mapping.w_avg"}:
        return {"synthesis.const": "synthesis.early_layer.const", "mapping.w_avg": "truncation.w_avg"}[name]
    room, index, part = _parts_of(name)
    if room == "layers":
        return f"mapping.dense{index}.{part}"
    return f"synthesis.{'layer' if room == 'convs' else 'output'}{index}.{_GENFORCE_PARTS.get(part, part)}"


def _hammer_name(name: str) -> str:
    return "w_avg" if name == "mapping.w_avg" else _genforce_name(name)


def _genforce_shape(name: str, shape: Shape) -> Shape:
    if name == "synthesis.const":
        return (1, *shape)
    return (1, 1, *shape) if name.endswith(".noise_const") else shape


def _mmgeneration_name(name: str) -> str:
    if name in {"synthesis.const", "mapping.w_avg"}:
        return {"synthesis.const": "constant_input.input", "mapping.w_avg": "w_avg"}[name]
    room, index, part = _parts_of(name)
    if room == "layers":
        return f"style_mapping.{index + 1}.{'linear.weight_orig' if part == 'weight' else part}"
    if part == "noise_const":
        return f"injected_noise_{index}"
    first, rest = ("conv1", "convs") if room == "convs" else ("to_rgb1", "to_rgbs")
    layer = first if index == 0 else f"{rest}.{index - 1}"
    if part == "bias":
        return f"{layer}.activate.bias" if room == "convs" else f"{layer}.bias"
    return f"{layer}.{_MMGENERATION_PARTS[part]}"


def _mmgeneration_shape(name: str, shape: Shape) -> Shape:
    if name.endswith(".noise_const"):
        return (1, 1, *shape)
    if name == "synthesis.const" or name.endswith(".noise_strength") or len(shape) == 4:
        return (1, *shape)
    return (1, *shape, 1, 1) if re.fullmatch(r"synthesis\.to_rgbs\.\d+\.bias", name) else shape


GENFORCE = Renaming(
    "the GenForce generator",
    _genforce_name,
    _genforce_shape,
    kernels=r"synthesis\.(upsample|layer\d+\.filter)\.kernel",
    kernel_gain=4.0,
    has_tensorflow_values=True,
    unlike={"mapping.label_weight": "classes that are normalized together with z: only one without classes is read"},
)
HAMMER = Renaming(
    "the Hammer generator",
    _hammer_name,
    _genforce_shape,
    kernels=r"synthesis\.(layer\d+\.)?filter",
    kernel_gain=1.0,
    unlike={"mapping.embedding.": "an embedding of classes: only one without classes is read"},
)
MMGENERATION = Renaming(
    "the MMGeneration generator",
    _mmgeneration_name,
    _mmgeneration_shape,
    kernels=r"(convs|to_rgbs)\.\d+\.(conv\.blur|upsample)\.kernel",
    kernel_gain=4.0,
    weight_axis=1,
    counters=frozenset({"steps"}),  # of the average, in MMagic
    notes=(
        "channels are taken for red, green and blue, as in converted weights; of those that the program itself trained "
        "on files that it read as blue, green and red, red and blue are exchanged",
    ),
)
OURS = Renaming(
    "the generator", lambda name: name, lambda _, shape: shape, kernels=r"synthesis\.kernel", kernel_gain=1.0
)
RENAMINGS = {"lsap": OURS, "genforce": GENFORCE, "hammer": HAMMER, "mmgeneration": MMGENERATION}
"""By name of the layout."""
