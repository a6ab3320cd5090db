"""The `.pt` layout of rosinality/stylegan2-pytorch, which pSp, e4e and most inversion papers use."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsap_core.errors import CheckpointError
from lsap_core.generators.checkpoints.canonical import (
    CanonicalCheckpoint,
    Shape,
    canonical_shapes,
    canonical_state,
    check_digest,
    check_kernels,
    check_tensors,
    config_from_json,
    config_from_sizes,
    config_to_json,
    constant_size,
    first_size,
    largest_index,
)
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.resample import fir_kernel

WHAT = "the rosinality generator"
NOISE_SEED = 0
OWN_ENTRY = "lsap_generator"


def from_rosinality_document(document: object) -> CanonicalCheckpoint:
    """The `g_ema` network of a rosinality checkpoint.

    Read are `g_ema`, `latent_avg` (the mean of W), and what this library writes beside them, as the layout
    itself has no place for `conv_clamp`. Training state (`g`, `d`, optimizers, `args`) is left alone.

    Args:
        document: what `read_torch` found in the file.

    Raises:
        CheckpointError: the file is another kind of checkpoint, or its tensors do not fit.
    """
    if not isinstance(document, Mapping) or not isinstance(document.get("g_ema"), Mapping):
        raise CheckpointError(
            f"wanted a generator checkpoint with the entry g_ema; found {describe_torch_document(document)}"
        )
    checkpoint = from_rosinality(document["g_ema"], document.get("latent_avg"))
    own = document.get(OWN_ENTRY)
    return checkpoint if own is None else _with_own_entry(checkpoint, own)


def to_rosinality_document(checkpoint: CanonicalCheckpoint) -> dict[str, Any]:
    """The dictionary to `torch.save`: `g_ema`, `latent_avg` where known, and our configuration beside them.

    Other programs ignore that entry; a network with `conv_clamp` then runs unclamped in them.
    """
    document: dict[str, Any] = {"g_ema": to_rosinality(checkpoint.config, checkpoint.state)}
    w_avg = checkpoint.state["mapping.w_avg"]
    if bool(torch.isfinite(w_avg).all()):
        document["latent_avg"] = w_avg.clone()
    document[OWN_ENTRY] = {
        "config": config_to_json(checkpoint.config),
        "notes": list(checkpoint.notes),
        "digest": checkpoint.digest,
    }
    return document


def from_rosinality(
    state: Mapping[str, Tensor], latent_avg: Tensor | None = None, conv_clamp: float | None = None
) -> CanonicalCheckpoint:
    """Canonical form of a rosinality generator; every size is read from the shapes.

    Accepted: names with the prefix `module.`, FIR kernels left out, noise buffers left out. Noise buffers
    that are missing are drawn once, from a fixed seed, and a note says so.

    Args:
        state: the `g_ema` dictionary.
        latent_avg: mean of W, [w_dim] or [1, w_dim], or None when unknown.
        conv_clamp: bound on activations, which this layout cannot store.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape, or a FIR kernel is another one.
    """
    state = _without_prefix(state)
    config = _read_config(state, conv_clamp)
    stored = _stored_shapes(config)
    expected = {_rosinality_name(name): _rosinality_shape(name, shape) for name, shape in stored.items()}
    kernels = _kernel_names(config)
    drawn = [index for index in range(config.num_convs) if f"noises.noise_{index}" not in state]
    noise = {f"noises.noise_{index}": _draw_noise(index, config.noise_sizes[index]) for index in drawn}
    tensors = {name: tensor for name, tensor in state.items() if name not in kernels} | noise
    check_tensors(tensors, expected, what=WHAT)
    check_kernels({name: state[name] for name in kernels if name in state}, gain=4.0, what=WHAT)
    canonical = {name: tensors[_rosinality_name(name)].reshape(shape) for name, shape in stored.items()}
    canonical["mapping.w_avg"] = _w_avg(latent_avg, config.w_dim)
    return CanonicalCheckpoint(config, canonical_state(config, canonical, what=WHAT), _noise_notes(drawn))


def to_rosinality(config: GeneratorConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The `g_ema` dictionary of a canonical state; the mean of W is no part of it.

    Raises:
        CheckpointError: the state is not that of `config`.
    """
    shapes = canonical_shapes(config)
    check_tensors(state, shapes, what="the network")
    result = {
        _rosinality_name(name): state[name].detach().reshape(_rosinality_shape(name, shape)).clone()
        for name, shape in _stored_shapes(config).items()
    }
    return result | {name: fir_kernel() * 4.0 for name in _kernel_names(config)}


def describe_torch_document(document: object) -> str:
    """What a loaded `torch.save` file is, in words, for whoever passed it as a generator."""
    if not isinstance(document, Mapping):
        return f"a single {type(document).__name__}"
    keys = {str(key) for key in document}
    nested = document.get("state_dict")
    parts = {str(key).split(".")[0] for key in nested} if isinstance(nested, Mapping) else set()
    if {"encoder", "decoder"} <= parts:
        return f"an encoder checkpoint (pSp, e4e or HFGI: state_dict with {', '.join(sorted(parts))})"
    if "state_dict" in keys:
        return f"a state_dict of another network (its modules: {', '.join(sorted(parts)[:6])})"
    if {"encoder", "decoder"} <= keys:
        return "an encoder checkpoint (GANInverter: entries encoder and decoder)"
    if keys & {"g", "G"}:
        return "a training checkpoint with g but without its average g_ema"
    if "input.input" in keys:
        return "the bare weights of a generator: pass the file as one"
    if "synthesis.b4.const" in keys:
        return "the bare weights of an NVlabs generator: pass the file as one"
    return f"a dictionary with the entries {', '.join(sorted(keys)[:6]) or '(none)'}"


def _read_config(state: Mapping[str, Tensor], conv_clamp: float | None) -> GeneratorConfig:
    constant = constant_size(state.get("input.input"))
    num_blocks = (largest_index(r"convs\.(\d+)\.", state, default=-1) + 1) // 2
    channels = [first_size(state, ("conv1.activate.bias", 0), ("conv1.conv.weight", 1), ("input.input", 1))]
    for block in range(num_blocks):
        up, conv = f"convs.{2 * block}", f"convs.{2 * block + 1}"
        places = ((f"{up}.activate.bias", 0), (f"{conv}.activate.bias", 0), (f"{up}.conv.weight", 1))
        channels.append(first_size(state, *places))
    return config_from_sizes(
        WHAT,
        resolution=max(constant) << num_blocks,
        channels=tuple(channels),
        z_dim=first_size(state, ("style.1.weight", 1)),
        w_dim=first_size(state, ("conv1.conv.modulation.weight", 1), ("style.1.bias", 0)),
        num_mapping_layers=largest_index(r"style\.(\d+)\.", state, default=0),
        image_channels=first_size(state, ("to_rgb1.bias", 1), ("to_rgb1.conv.weight", 1)),
        conv_clamp=None if conv_clamp is None else float(conv_clamp),
        constant=constant,
    )


def _stored_shapes(config: GeneratorConfig) -> dict[str, Shape]:
    """Canonical tensors that a `g_ema` dictionary holds: all but the mean of W."""
    return {name: shape for name, shape in canonical_shapes(config).items() if name != "mapping.w_avg"}


def _rosinality_name(name: str) -> str:
    if name == "synthesis.const":
        return "input.input"
    match = re.fullmatch(r"(?:mapping|synthesis)\.(layers|convs|to_rgbs)\.(\d+)\.(.+)", name)
    assert match is not None, name
    room, index, part = match[1], int(match[2]), match[3]
    if room == "layers":
        return f"style.{index + 1}.{part}"
    if part == "noise_const":
        return f"noises.noise_{index}"
    first, rest = ("conv1", "convs") if room == "convs" else ("to_rgb1", "to_rgbs")
    layer = first if index == 0 else f"{rest}.{index - 1}"
    if part == "bias":
        return f"{layer}.activate.bias" if room == "convs" else f"{layer}.bias"
    parts = {
        "weight": "conv.weight",
        "affine.weight": "conv.modulation.weight",
        "affine.bias": "conv.modulation.bias",
        "noise_strength": "noise.weight",
    }
    return f"{layer}.{parts[part]}"


def _rosinality_shape(name: str, shape: Shape) -> Shape:
    """Shape in a `g_ema` dictionary: the same numbers in the same order, with axes of size 1 added."""
    if name.endswith(".noise_const"):
        return (1, 1, *shape)
    if name == "synthesis.const" or name.endswith(".noise_strength") or len(shape) == 4:
        return (1, *shape)
    if re.fullmatch(r"synthesis\.to_rgbs\.\d+\.bias", name):
        return (1, *shape, 1, 1)
    return shape


def _kernel_names(config: GeneratorConfig) -> list[str]:
    blocks = range(config.num_to_rgbs - 1)
    blurs = [f"convs.{2 * block}.conv.blur.kernel" for block in blocks]
    return blurs + [f"to_rgbs.{block}.upsample.kernel" for block in blocks]


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the `module.` of distributed training, which all of them have or none."""
    prefix = "module." if all(str(name).startswith("module.") for name in state) else ""
    return {str(name).removeprefix(prefix): tensor for name, tensor in state.items()}


def _draw_noise(index: int, size: tuple[int, int]) -> Tensor:
    """Noise map [1, 1, h, w] for a buffer that the file lacks, from a stream that NumPy froze."""
    values = np.random.RandomState(NOISE_SEED + index).standard_normal((1, 1, *size))
    return torch.from_numpy(values.astype(np.float32))


def _noise_notes(drawn: Sequence[int]) -> tuple[str, ...]:
    if not drawn:
        return ()
    return (
        f"noise buffers {', '.join(map(str, drawn))} are missing from the file; they were drawn from NumPy's "
        f"RandomState({NOISE_SEED} + index): images with constant noise depend on this draw",
    )


def _w_avg(latent_avg: Tensor | None, w_dim: int) -> Tensor:
    if latent_avg is None:
        return torch.full((w_dim,), torch.nan)
    if not isinstance(latent_avg, Tensor) or tuple(latent_avg.shape) not in {(w_dim,), (1, w_dim)}:
        found = list(latent_avg.shape) if isinstance(latent_avg, Tensor) else type(latent_avg).__name__
        raise CheckpointError(f"{WHAT}: latent_avg is {found}; wanted the mean of W, [{w_dim}]")
    if not bool(torch.isfinite(latent_avg).all()):
        raise CheckpointError(f"{WHAT}: latent_avg holds values that are not finite")
    return latent_avg.reshape(w_dim)


def _with_own_entry(checkpoint: CanonicalCheckpoint, own: object) -> CanonicalCheckpoint:
    match own:
        case {"config": str(text), "notes": list(notes), "digest": str(digest)} if all(
            isinstance(note, str) for note in notes
        ):
            config = config_from_json(text)
        case _:
            raise CheckpointError(f"{WHAT}: the entry {OWN_ENTRY} holds no configuration")
    unseen = {name: getattr(config, name) for name in ("conv_clamp", "mapping_lr_multiplier", "content_box")}
    if dataclasses.replace(checkpoint.config, **unseen) != config:
        raise CheckpointError(
            f"{WHAT}: the entry {OWN_ENTRY} says {config}, the tensors have the sizes {checkpoint.config}"
        )
    result = CanonicalCheckpoint(config, checkpoint.state, (*notes, *checkpoint.notes))
    check_digest(result, digest)
    return result
