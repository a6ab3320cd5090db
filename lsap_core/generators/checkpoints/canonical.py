"""The names that every checkpoint format is translated to, and what makes two files the same network."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsap_core.errors import CheckpointError, ConfigError
from lsap_core.generators.config import PUBLISHED_CONSTANT, GeneratorConfig
from lsap_core.generators.generator import Generator
from lsap_core.generators.resample import fir_kernel

Shape = tuple[int, ...]

KIND = "Generator"
FORMAT_VERSION = "1"
SHOWN_PROBLEMS = 8
KERNEL_TOLERANCE = 1e-5


@dataclass(frozen=True)
class CanonicalCheckpoint:
    """One generator, whatever file it came from.

    Attributes:
        config: every size, read from the file.
        state: what `Generator(config).state_dict()` holds, float32, on the CPU. `mapping.w_avg` is NaN when
            the file does not say it.
        notes: sentences about what the file did not say and what was done instead.
        c_dim: classes that the network had in the file; 0 for one without.
        label: the class that it was read for; None for none, or for the mean over them.
    """

    config: GeneratorConfig
    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    c_dim: int = 0
    label: int | None = None

    @property
    def digest(self) -> str:
        """`generator_digest` of this network."""
        return generator_digest(self.config, self.state)


def canonical_shapes(config: GeneratorConfig) -> dict[str, Shape]:
    """Name and shape of every tensor in `Generator(config).state_dict()`."""
    shapes: dict[str, Shape] = {
        "mapping.w_avg": (config.w_dim,),
        "synthesis.const": (config.channels[0], *config.constant),
    }
    for index in range(config.num_mapping_layers):
        width = config.z_dim if index == 0 else config.w_dim
        shapes[f"mapping.layers.{index}.weight"] = (config.w_dim, width)
        shapes[f"mapping.layers.{index}.bias"] = (config.w_dim,)
    for conv, size in enumerate(config.noise_sizes):
        name = f"synthesis.convs.{conv}"
        width_in, width_out = config.conv_in_channels(conv), config.conv_out_channels(conv)
        shapes[f"{name}.weight"] = (width_out, width_in, 3, 3)
        shapes[f"{name}.bias"] = (width_out,)
        shapes[f"{name}.noise_strength"] = ()
        shapes[f"{name}.noise_const"] = size
        shapes[f"{name}.affine.weight"] = (width_in, config.w_dim)
        shapes[f"{name}.affine.bias"] = (width_in,)
    for to_rgb, width in enumerate(config.channels):
        name = f"synthesis.to_rgbs.{to_rgb}"
        shapes[f"{name}.weight"] = (config.image_channels, width, 1, 1)
        shapes[f"{name}.bias"] = (config.image_channels,)
        shapes[f"{name}.affine.weight"] = (width, config.w_dim)
        shapes[f"{name}.affine.bias"] = (width,)
    return shapes


def from_canonical(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> CanonicalCheckpoint:
    """A checkpoint from canonical tensors and the metadata that `to_metadata` wrote beside them.

    Raises:
        CheckpointError: the metadata describe something else, a tensor is missing, unexpected or of another
            shape, or the tensors are not those that the recorded digest was taken of.
    """
    if metadata.get("kind") != KIND:
        found = metadata.get("kind", "no kind")
        raise CheckpointError(f"the metadata name {found}; wanted a {KIND} saved by this library")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"the format version is {metadata.get('format_version')}; this library reads {FORMAT_VERSION}: "
            "update it, or convert the original file again"
        )
    config = config_from_json(metadata.get("config", ""))
    notes = _notes_from_json(metadata.get("notes", "[]"))
    checkpoint = CanonicalCheckpoint(config, canonical_state(config, state, what="the file"), notes)
    check_digest(checkpoint, metadata.get("digest"))
    return checkpoint


def to_metadata(checkpoint: CanonicalCheckpoint) -> dict[str, str]:
    """What travels beside canonical tensors, as text: kind, format version, configuration, notes, digest."""
    return {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "config": config_to_json(checkpoint.config),
        "notes": json.dumps(list(checkpoint.notes)),
        "digest": checkpoint.digest,
    }


def canonical_state(config: GeneratorConfig, state: Mapping[str, Tensor], *, what: str) -> dict[str, Tensor]:
    """The tensors of `config`, checked one by one, float32, contiguous, on the CPU.

    Raises:
        CheckpointError: a tensor is missing, unexpected, of another shape, or not a number somewhere.
    """
    shapes = canonical_shapes(config)
    check_tensors(state, shapes, what=what)
    result = {name: _as_float32(state[name]) for name in shapes}
    for name, tensor in result.items():
        is_unknown = name == "mapping.w_avg" and bool(tensor.isnan().all())
        if not is_unknown and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{what}: {name} holds values that are not finite; the network is damaged")
    return result


def check_tensors(found: Mapping[str, Any], expected: Mapping[str, Shape], *, what: str) -> None:
    """Refuse a set of tensors that is not exactly the expected one.

    Raises:
        CheckpointError: with a table of the first differences: name, found shape, expected shape.
    """
    rows: list[tuple[str, str, str]] = []
    for name, shape in expected.items():
        if name not in found:
            rows.append((name, "missing", _shape_text(shape)))
        elif not isinstance(found[name], Tensor):
            rows.append((name, type(found[name]).__name__, _shape_text(shape)))
        elif not found[name].is_floating_point():
            rows.append((name, str(found[name].dtype), f"{_shape_text(shape)} float"))
        elif found[name].shape != shape:
            rows.append((name, _shape_text(found[name].shape), _shape_text(shape)))
        elif not _is_dense(found[name]):
            rows.append((name, "a tensor without memory for each value", _shape_text(shape)))
    for name, value in found.items():
        if name not in expected:
            shape_text = _shape_text(value.shape) if isinstance(value, Tensor) else type(value).__name__
            rows.append((str(name)[:100], shape_text, "nothing"))
    if not rows:
        return
    widths = [max(len(row[column]) for row in rows[:SHOWN_PROBLEMS]) for column in (0, 1)]
    lines = [f"  {'name':<{widths[0]}}  {'found':<{widths[1]}}  expected"]
    lines += [f"  {name:<{widths[0]}}  {a:<{widths[1]}}  {b}" for name, a, b in rows[:SHOWN_PROBLEMS]]
    if len(rows) > SHOWN_PROBLEMS:
        lines.append(f"  ... and {len(rows) - SHOWN_PROBLEMS} more")
    raise CheckpointError(f"{what}: {len(rows)} tensors differ from what its sizes need\n" + "\n".join(lines))


def constant_size(const: object) -> tuple[int, int]:
    """Height and width of a generator's constant [..., C, H, W]; the published ones of what is no such tensor."""
    if not isinstance(const, Tensor) or const.ndim < 3:
        return PUBLISHED_CONSTANT
    height, width = const.shape[-2:]
    return height, width


def check_kernels(kernels: Mapping[str, Tensor], *, gain: float, what: str) -> None:
    """Refuse FIR filters other than `gain` times the normalized outer product of [1, 3, 3, 1].

    Raises:
        CheckpointError: naming the first other filter.
    """
    expected = fir_kernel() * gain
    for name, kernel in kernels.items():
        check_tensors({name: kernel}, {name: (4, 4)}, what=what)
        if not torch.allclose(kernel.float(), expected, rtol=KERNEL_TOLERANCE, atol=0.0):
            raise CheckpointError(
                f"{what}: the filter {name} is {kernel.tolist()}; only that of [1, 3, 3, 1] is supported, "
                f"{expected.tolist()}"
            )


def check_digest(checkpoint: CanonicalCheckpoint, recorded: str | None) -> None:
    """Refuse a network that is not the one that its file was written with.

    Raises:
        CheckpointError: the digests differ.
    """
    if recorded != checkpoint.digest:
        raise CheckpointError(
            f"the network has digest {checkpoint.digest}, its file was written with {recorded}: "
            "it was changed or damaged; convert the original file again"
        )


def generator_digest(config: GeneratorConfig, state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a network, the same for every file format that holds it, as 64 hexadecimal digits.

    Hashed in this order: `lsap generator 1`, the configuration as JSON with sorted keys and no spaces, then
    for each tensor by sorted canonical name `<name> float32 <shape as JSON>` and its values (little-endian,
    row-major). A newline ends each line of text.

    Raises:
        CheckpointError: the state is not that of `config` in float32.
    """
    check_tensors(state, canonical_shapes(config), what="the network")
    sha256 = hashlib.sha256(f"lsap generator 1\n{config_to_json(config)}\n".encode())
    for name in sorted(state):
        values = state[name].detach().cpu()
        if values.dtype != torch.float32:
            raise CheckpointError(f"{name} is {values.dtype}; a digest is taken of float32 weights")
        sha256.update(f"{name} float32 {json.dumps(list(values.shape))}\n".encode())
        sha256.update(np.ascontiguousarray(values.numpy(), dtype="<f4").tobytes())
    return sha256.hexdigest()


def config_to_json(config: GeneratorConfig) -> str:
    """The configuration as one line of JSON, keys sorted."""
    return json.dumps(config.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)


def config_from_json(text: str) -> GeneratorConfig:
    """The inverse of `config_to_json`.

    Raises:
        CheckpointError: the text is no configuration of a generator.
    """
    try:
        return GeneratorConfig.from_dict(json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{text[:200]!r} is no generator configuration: {error}") from error


def config_from_sizes(what: str, **sizes: Any) -> GeneratorConfig:
    """A configuration from sizes found in a file, whose contradictions are the file's fault.

    Raises:
        CheckpointError: no StyleGAN2 has these sizes.
    """
    try:
        return GeneratorConfig(**sizes)
    except ConfigError as error:
        raise CheckpointError(f"{what}: {error}") from error


def first_size(state: Mapping[str, Any], *places: tuple[str, int]) -> int:
    """Size of the first tensor axis that exists among `places`, each a tensor's name and an axis.

    Raises:
        CheckpointError: none of the tensors is there.
    """
    for name, axis in places:
        tensor = state.get(name)
        if isinstance(tensor, Tensor) and tensor.ndim > axis:
            return tensor.shape[axis]
    names = " and ".join(dict.fromkeys(name for name, _ in places))
    raise CheckpointError(
        f"{names} missing among {len(state)} tensors ({', '.join(map(str, list(state)[:4]))}, ...): "
        "the network's sizes cannot be read"
    )


def largest_index(pattern: str, names: Iterable[str], *, default: int) -> int:
    """The largest number that the pattern's group finds at the beginning of a name."""
    matches = (re.match(pattern, str(name)[:200]) for name in names)
    return max((int(match[1]) for match in matches if match), default=default)


def build_generator(checkpoint: CanonicalCheckpoint) -> Generator:
    """The network of a checkpoint: on the CPU, in eval mode, not frozen. Takes no global random numbers."""
    with torch.random.fork_rng(devices=[]):
        generator = Generator(checkpoint.config)
    generator.load_state_dict(checkpoint.state)
    return generator.eval()


def _as_float32(tensor: Tensor) -> Tensor:
    return tensor.detach().to(device="cpu", dtype=torch.float32).contiguous()


def _is_dense(tensor: Tensor) -> bool:
    """Whether every element has memory of its own: a few bytes must not claim to be a large tensor."""
    if tensor.is_meta or tensor.layout is not torch.strided:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _shape_text(shape: Shape) -> str:
    return str(list(shape))


def _notes_from_json(text: str) -> tuple[str, ...]:
    try:
        notes = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"the notes {text[:200]!r} are no JSON list: {error}") from error
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise CheckpointError(f"the notes {text[:200]!r} are no JSON list of sentences")
    return tuple(notes)
