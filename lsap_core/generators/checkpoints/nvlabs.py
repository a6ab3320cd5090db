"""The `.pkl` layout of NVlabs/stylegan2-ada-pytorch, also as NVlabs/stylegan3 writes it for StyleGAN2."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lsap_core.errors import CheckpointError
from lsap_core.generators.checkpoints.canonical import (
    CanonicalCheckpoint,
    canonical_shapes,
    canonical_state,
    check_kernels,
    check_tensors,
    config_from_sizes,
    constant_size,
    first_size,
    largest_index,
)
from lsap_core.generators.checkpoints.unpickling import PersistentNode, TensorRecord, to_tensor
from lsap_core.generators.config import PUBLISHED_CONSTANT, GeneratorConfig
from lsap_core.generators.layers import PIXEL_NORM_EPSILON
from lsap_core.generators.resample import fir_kernel

WHAT = "the NVlabs generator"
FLAT_LAYOUT_CLAMP = 256.0
MAX_DEPTH = 16
SIZES = {"z_dim": "z_dim", "w_dim": "w_dim", "img_resolution": "resolution", "img_channels": "image_channels"}

_STYLEGAN3 = "this is a StyleGAN3 network; only StyleGAN2 is supported, whose layers share rows of W+"

# Options that change the function computed, with the only supported value; then options that do not change
# it, or that the shapes of the tensors tell as well.
_FIXED_OPTIONS = {
    "architecture": "skip",
    "activation": "lrelu",
    "use_noise": True,
    "resample_filter": [1, 3, 3, 1],
}
_FREE_OPTIONS = {
    "channel_base",
    "channel_max",
    "num_fp16_res",
    "fp16_channels_last",
    "fused_modconv_default",
    "num_layers",
    "layer_features",
    "embed_features",
    "w_avg_beta",
    "freeze_layers",
    "freeze_embed",
}


def from_nvlabs_document(document: object, *, label: int | None = None) -> CanonicalCheckpoint:
    """The `G_ema` network of an NVlabs snapshot, whose source code stays unread.

    Args:
        document: what `read_records` found in the file.
        label: the class of a conditional network, from 0; None for the mean over its classes.

    Raises:
        CheckpointError: the file holds something else, a storage is hostile, or the tensors do not fit.
    """
    if not isinstance(document, Mapping):
        raise CheckpointError(f"wanted a snapshot, a dictionary with G_ema; found {_kind(document)}")
    node = document.get("G_ema")
    if not isinstance(node, PersistentNode):
        entries = ", ".join(f"{str(name)[:40]}: {_kind(value)}" for name, value in list(document.items())[:6])
        raise CheckpointError(f"wanted a snapshot with the network G_ema; found {entries or 'no entries'}")
    return from_nvlabs_network(node, "G_ema", label=label)


def from_nvlabs_network(node: PersistentNode, what: str, *, label: int | None = None) -> CanonicalCheckpoint:
    """A generator that is a persistent object of NVlabs' classes, as in their snapshots and as PTI saves it.

    Args:
        node: the network.
        what: how the file calls it.
        label: the class of a conditional network, from 0; None for the mean over its classes.

    Raises:
        CheckpointError: it is another network, a storage is hostile, or the tensors do not fit.
    """
    nodes = dict(modules_of(node, what))
    if any(name.startswith("synthesis.input") for name in nodes):
        raise CheckpointError(_STYLEGAN3)
    state = {name: to_tensor(record) for name, record in records_of(nodes, what)}
    init_kwargs = node.state.get("_init_kwargs")
    if not isinstance(init_kwargs, Mapping):
        raise CheckpointError(f"{what} does not say what it was made with: _init_kwargs is missing")
    clamps = {_number("conv_clamp", n.state["conv_clamp"]) for n in nodes.values() if "conv_clamp" in n.state}
    if len(clamps) > 1:
        raise CheckpointError(f"{what}: its layers have different clamps: {sorted(map(str, clamps))}")
    checkpoint = from_nvlabs(state, init_kwargs, layer_clamp=next(iter(clamps), None), label=label)
    used = checkpoint.config.conv_clamp
    if clamps <= {used}:
        return checkpoint
    note = f"the layers carry the clamp {clamps.pop()}, the options say {used}, which is used"
    return dataclasses.replace(checkpoint, notes=(*checkpoint.notes, note))


def from_nvlabs(
    state: Mapping[str, Tensor],
    init_kwargs: Mapping[str, Any] | None = None,
    *,
    layer_clamp: float | None = None,
    label: int | None = None,
) -> CanonicalCheckpoint:
    """Canonical form of an NVlabs generator; every size is read from the shapes.

    Accepted: FIR kernels or `mapping.w_avg` left out. Of a conditional network the label becomes part of the first
    bias, so that what is left is a generator without classes: synthesis never sees the label, and mapping sees it there
    alone.

    Args:
        state: parameters and buffers by dotted name.
        init_kwargs: what the network was made with, synthesis options nested (stylegan2-ada-pytorch) or flat
            (stylegan3, where `conv_clamp` is 256 unless said otherwise). None: multiplier 0.01.
        layer_clamp: the clamp that the layers themselves carry, used when no synthesis option is given.
        label: the class of a conditional network, from 0; None for the mean over its classes.

    Raises:
        CheckpointError: another architecture, a label that the network has not, or a tensor that is missing,
            unexpected or of another shape.
    """
    if any(name.startswith("synthesis.input") for name in state):
        raise CheckpointError(_STYLEGAN3)
    kwargs = dict(init_kwargs or {})
    state, c_dim, label_notes = _with_label(state, kwargs.get("c_dim"), label)
    clamp, lr_multiplier, unused = _read_options(kwargs, layer_clamp)
    config = _read_config(state, clamp, lr_multiplier)
    for name, field in SIZES.items():
        if field == "resolution" and config.constant != PUBLISHED_CONSTANT:
            continue  # forks with other constants say a side, a base or both sides there; the tensors are checked
        if name in kwargs and kwargs[name] != getattr(config, field):
            raise CheckpointError(
                f"{WHAT}: it was made with {name} = {kwargs[name]}, its tensors have {getattr(config, field)}"
            )
    kernels = _kernel_names(config)
    shapes = canonical_shapes(config)
    expected = {nvlabs_name(name): shape for name, shape in shapes.items()}
    tensors = {name: tensor for name, tensor in state.items() if name not in kernels}
    tensors.setdefault("mapping.w_avg", torch.full((config.w_dim,), torch.nan))
    check_tensors(tensors, expected, what=WHAT)
    check_kernels({name: state[name] for name in kernels if name in state}, gain=1.0, what=WHAT)
    canonical = {name: tensors[nvlabs_name(name)] for name in shapes}
    notes = (f"options of the snapshot that were not used: {', '.join(unused)}",) if unused else ()
    return CanonicalCheckpoint(
        config, canonical_state(config, canonical, what=WHAT), (*label_notes, *notes), c_dim=c_dim, label=label
    )


def to_nvlabs(config: GeneratorConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters and buffers of a canonical state under NVlabs' names, `mapping.w_avg` included where known.

    Raises:
        CheckpointError: the state is not that of `config`.
    """
    check_tensors(state, canonical_shapes(config), what="the network")
    result = {nvlabs_name(name): tensor.detach().clone() for name, tensor in state.items()}
    if bool(result["mapping.w_avg"].isnan().all()):
        del result["mapping.w_avg"]
    return result | {name: fir_kernel() for name in _kernel_names(config)}


def nvlabs_name(name: str) -> str:
    """NVlabs' name of a canonical tensor; the numbers and their shape are the same.

    Blocks are called b4, b8, ..., whatever the constant: forks that start from another one keep the names.
    """
    if name == "synthesis.const":
        return "synthesis.b4.const"
    match = re.fullmatch(r"(?:mapping|synthesis)\.(layers|convs|to_rgbs)\.(\d+)\.(.+)", name)
    if match is None:
        return name  # mapping.w_avg
    room, index, part = match[1], int(match[2]), match[3]
    if room == "layers":
        return f"mapping.fc{index}.{part}"
    if room == "to_rgbs":
        return f"synthesis.b{4 << index}.torgb.{part}"
    return f"synthesis.b{4 << (index + 1) // 2}.conv{0 if index % 2 else 1}.{part}"


def modules_of(top: PersistentNode, what: str) -> Iterator[tuple[str, PersistentNode]]:
    """A network of a snapshot and its modules by dotted name.

    Raises:
        CheckpointError: something else stands in a module's place, or one appears twice, as in a cycle.
    """
    waiting = [("", top, 0)]
    seen: set[int] = set()
    while waiting:
        prefix, node, depth = waiting.pop()
        if id(node) in seen or depth > MAX_DEPTH:
            raise CheckpointError(f"{what}: the module {prefix[:80] or '(top)'} is nested in itself or shared")
        seen.add(id(node))
        yield prefix, node
        for name, child in _entries(node, "_modules", what):
            if not isinstance(child, PersistentNode):
                raise CheckpointError(f"{what}: the module {prefix}.{name} is {_kind(child)}")
            waiting.append((f"{prefix}.{name}" if prefix else name, child, depth + 1))


def records_of(nodes: Mapping[str, PersistentNode], what: str) -> Iterator[tuple[str, TensorRecord]]:
    """Parameters and buffers of modules by dotted name.

    Raises:
        CheckpointError: something else stands in a tensor's place.
    """
    for prefix, node in nodes.items():
        for name, value in (*_entries(node, "_parameters", what), *_entries(node, "_buffers", what)):
            if not isinstance(value, TensorRecord):
                raise CheckpointError(f"{what}: {prefix}.{name} is {_kind(value)}; a tensor was wanted")
            yield f"{prefix}.{name}" if prefix else name, value


def _entries(node: PersistentNode, attribute: str, what: str) -> Iterator[tuple[str, Any]]:
    entries = node.state.get(attribute)
    if not isinstance(entries, Mapping) or not all(isinstance(name, str) for name in entries):
        raise CheckpointError(f"{what}: a {node.class_name[:60]} has no {attribute}")
    return ((name, value) for name, value in entries.items() if value is not None)


def _with_label(
    state: Mapping[str, Tensor], told: object, label: int | None
) -> tuple[Mapping[str, Tensor], int, tuple[str, ...]]:
    """The tensors of a network without classes, the number of classes that it had, and what was done with them.

    The first layer of a conditional mapping network reads [z, y], with z and the embedding y of the label each of mean
    square 1: W [z, y] / sqrt(Z + E) = (W_z sqrt(Z / (Z + E))) z / sqrt(Z) + W_y y / sqrt(Z + E), of which the second
    term is constant.
    """
    names = ("mapping.embed.weight", "mapping.embed.bias", "mapping.fc0.weight", "mapping.fc0.bias")
    if not told and not any(name.startswith("mapping.embed.") for name in state):
        if label is not None:
            raise CheckpointError(f"label {label} was asked of a generator without classes: leave label out")
        return state, 0, ()
    embed, embed_bias, first, bias = (state.get(name) for name in names)
    if embed is None or embed_bias is None or first is None or bias is None or embed.ndim != 2 or first.ndim != 2:
        raise CheckpointError(
            f"{WHAT} is conditional (c_dim = {told or 'unknown'}), and the layers that read its label are not all "
            f"there: wanted {', '.join(names)}"
        )
    width, c_dim = embed.shape
    z_dim = first.shape[1] - width
    if told not in (None, 0, c_dim) or z_dim < 1 or tuple(embed_bias.shape) != (width,):
        raise CheckpointError(
            f"{WHAT} is conditional (c_dim = {told or 'unknown'}), but embeds {c_dim} classes into {list(embed.shape)} "
            f"and reads {list(first.shape)}: its tensors do not fit each other"
        )
    check_tensors({name: state[name] for name in names}, {name: tuple(state[name].shape) for name in names}, what=WHAT)
    if label is not None and not 0 <= label < c_dim:
        raise CheckpointError(f"label {label} was asked of a generator with {c_dim} classes: wanted 0 to {c_dim - 1}")
    embeddings = embed.double().T / math.sqrt(c_dim) + embed_bias.double()  # a row for each class, of its one-hot label
    embeddings = embeddings * (embeddings.square().mean(dim=1, keepdim=True) + PIXEL_NORM_EPSILON).rsqrt()
    y = embeddings.mean(dim=0) if label is None else embeddings[label]
    wide = first.double()
    of_z = wide[:, :z_dim] * math.sqrt(z_dim / (z_dim + width))
    of_label = wide[:, z_dim:] @ y / math.sqrt(z_dim + width)
    own = {name: tensor for name, tensor in state.items() if not name.startswith("mapping.embed.")}
    own |= {"mapping.fc0.weight": of_z.float(), "mapping.fc0.bias": (bias.double() + of_label).float()}
    chosen = (
        f"label {label} of {c_dim} is"
        if label is not None
        else (f"none of its {c_dim} classes was named (label: 0 to {c_dim - 1}), so the mean of their embeddings is")
    )
    return own, c_dim, (f"{chosen} taken for codes that are sampled; codes in W and W+ need none",)


def _read_options(kwargs: Mapping[str, Any], layer_clamp: float | None) -> tuple[float | None, float, tuple[str, ...]]:
    """Clamp, multiplier of the mapping network, and the names of options that are not known."""
    mapping = _options(kwargs, "mapping_kwargs")
    if "synthesis_kwargs" in kwargs:
        synthesis, clamp = _options(kwargs, "synthesis_kwargs"), None
    else:
        plain = {*SIZES, "c_dim", "mapping_kwargs", "class_name"}
        synthesis = {name: value for name, value in kwargs.items() if name not in plain}
        clamp = FLAT_LAYOUT_CLAMP if synthesis else layer_clamp
    clamp = _number("conv_clamp", synthesis.pop("conv_clamp", clamp))
    lr_multiplier = _number("lr_multiplier", mapping.pop("lr_multiplier", None))
    for options in (synthesis, mapping):
        for name, supported in _FIXED_OPTIONS.items():
            value = options.pop(name, supported)
            if value != supported:
                raise CheckpointError(f"{WHAT} has {name} = {value!r}; only {supported!r} is supported")
    unused = {*map(str, synthesis), *map(str, mapping)} - _FREE_OPTIONS
    return clamp, lr_multiplier or GeneratorConfig.mapping_lr_multiplier, tuple(sorted(unused))


def _options(kwargs: Mapping[str, Any], name: str) -> dict[str, Any]:
    options = kwargs.get(name) or {}
    if not isinstance(options, Mapping):
        raise CheckpointError(f"{WHAT}: {name} is {_kind(options)}; named options were wanted")
    return dict(options)


def _read_config(state: Mapping[str, Tensor], conv_clamp: float | None, lr_multiplier: float) -> GeneratorConfig:
    constant = constant_size(state.get("synthesis.b4.const"))
    last = largest_index(r"synthesis\.b(\d+)\.", state, default=0)
    sides = [4 << power for power in range(max(last.bit_length() - 2, 1))]
    channels = tuple(
        first_size(state, (f"synthesis.b{side}.conv1.bias", 0), (f"synthesis.b{side}.conv1.weight", 0))
        for side in sides
    )
    return config_from_sizes(
        WHAT,
        resolution=last if constant == PUBLISHED_CONSTANT else max(constant) << (len(sides) - 1),
        channels=channels,
        z_dim=first_size(state, ("mapping.fc0.weight", 1)),
        w_dim=first_size(state, ("synthesis.b4.conv1.affine.weight", 1), ("mapping.w_avg", 0)),
        num_mapping_layers=1 + largest_index(r"mapping\.fc(\d+)\.", state, default=-1),
        image_channels=first_size(state, ("synthesis.b4.torgb.bias", 0), ("synthesis.b4.torgb.weight", 0)),
        mapping_lr_multiplier=lr_multiplier,
        conv_clamp=conv_clamp,
        constant=constant,
    )


def _kernel_names(config: GeneratorConfig) -> list[str]:
    names = [f"synthesis.b{4 << block}.resample_filter" for block in range(config.num_to_rgbs)]
    convs = [f"synthesis.convs.{conv}.resample_filter" for conv in range(config.num_convs)]
    return names + [nvlabs_name(name) for name in convs]


def _number(name: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"{WHAT}: {name} is {_kind(value)}; a number was wanted")
    return float(value)


def _kind(value: object) -> str:
    if isinstance(value, PersistentNode):
        return f"a {value.class_name[:60]}"
    return "None" if value is None else f"a {type(value).__name__}"
