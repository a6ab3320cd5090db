"""Generator weights: files and URLs of every supported format, told apart by content, not by name."""

from __future__ import annotations

import io
import math
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from lsap_core.errors import CheckpointError
from lsap_core.generators.checkpoints import (
    ASSUMED,
    CanonicalCheckpoint,
    build_generator,
    from_canonical,
    from_generator_document,
    read_pickle,
    read_torch,
    to_metadata,
    to_rosinality_document,
)
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator
from lsap_core.images import IMAGE_CHANNELS, ContentBox
from tasks.weights.files import (
    check_torch_zip,
    describe_other,
    is_pickle,
    is_safetensors,
    is_torch_file,
    read_bytes,
    read_safetensors,
    write_verified,
)

KINDS = (
    "a StyleGAN2 in a .pt, .pth, .pkl (also TensorFlow's) or .safetensors, as NVlabs, rosinality, GenForce, Hammer, "
    "MMGeneration, MMagic or this project write them"
)
SAMPLE_SEED = 0


@dataclass(frozen=True)
class LoadedGenerator:
    """A generator and where it came from.

    Attributes:
        generator: the network, on the CPU, in eval mode, not frozen.
        config: its sizes.
        digest: SHA-256 of weights and configuration, the same for every file format that holds this network.
        format: "safetensors" for a file of ours with its configuration, "tensorflow", or the name of a layout.
        notes: sentences about what the file did not say and what was done instead; to be shown and kept.
    """

    generator: Generator
    config: GeneratorConfig
    digest: str
    format: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class GeneratorFile:
    """Where a generator's weights lie, and which part of its images is the picture.

    Attributes:
        place: path or URL.
        content_box: rows and columns that carry the picture, or None for what the file says.
        label: the class of a conditional generator, or None.
    """

    place: str
    content_box: ContentBox | None = None
    label: int | None = None

    def load(self) -> LoadedGenerator:
        """The generator; raises as `load_generator`."""
        return load_generator(self.place, content_box=self.content_box, label=self.label)


def load_generator(
    path_or_url: str,
    *,
    content_box: ContentBox | None = None,
    label: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> LoadedGenerator:
    """The generator of a file, without running any code that the file holds.

    Args:
        path_or_url: a path, or a URL that fsspec knows (s3://, https://, memory://, ...).
        content_box: rows and columns that carry the picture, for files that cannot say it; it belongs to the
            configuration, and so to the digest. None for what the file says.
        label: the class of a conditional generator, from 0, whose codes are sampled; None for the mean over its
            classes. It belongs to the weights, and so to the digest.
        storage_options: passed to fsspec.

    Raises:
        CheckpointError: there is no such file, or it is no generator that can be read, or one of no picture's channels.
        ConfigError: the content box lies outside its images.
    """
    data = read_bytes(path_or_url, storage_options, wanted=KINDS)
    format_name, checkpoint = _read_checkpoint(path_or_url, data, label)
    if (channels := checkpoint.config.image_channels) not in IMAGE_CHANNELS:
        raise CheckpointError(
            f"{path_or_url} makes images of {channels} channels, and pictures have 1 (gray), 3 (RGB) or 4 (RGBA): its "
            "weights can be described and converted, and nothing else"
        )
    if content_box is not None:
        checkpoint = replace(checkpoint, config=replace(checkpoint.config, content_box=content_box))
    return LoadedGenerator(
        build_generator(checkpoint), checkpoint.config, checkpoint.digest, format_name, checkpoint.notes
    )


def describe_generator(
    path_or_url: str, *, label: int | None = None, storage_options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a file of weights holds, as plain values for a table or JSON; of one with classes, read for a label.

    Raises:
        CheckpointError: as `load_generator`.
    """
    data = read_bytes(path_or_url, storage_options, wanted=KINDS)
    format_name, checkpoint = _read_checkpoint(path_or_url, data, label)
    config, state = checkpoint.config, checkpoint.state
    buffers = {"w_avg", "noise_const"}
    return {
        "location": path_or_url,
        "format": format_name,
        "num_bytes": len(data),
        "digest": checkpoint.digest,
        **config.to_dict(),
        "size": list(config.size),
        "num_ws": config.num_ws,
        "num_parameters": sum(t.numel() for name, t in state.items() if name.split(".")[-1] not in buffers),
        "c_dim": checkpoint.c_dim,
        "has_w_avg": bool(torch.isfinite(state["mapping.w_avg"]).all()),
        "notes": list(checkpoint.notes),
    }


def save_generator(
    generator: Generator,
    path_or_url: str,
    *,
    notes: tuple[str, ...] = (),
    storage_options: Mapping[str, Any] | None = None,
) -> str:
    """Write a generator as .safetensors or .pt, and return its digest.

    The file appears under its name only after it was read back: equal tensors, sizes and sampled image.

    Raises:
        CheckpointError: another suffix, an existing file, or one that does not read back as it was written.
    """
    state = {name: tensor.detach().cpu().clone() for name, tensor in generator.state_dict().items()}
    checkpoint = CanonicalCheckpoint(generator.config, state, notes)
    _write_verified(checkpoint, path_or_url, storage_options)
    return checkpoint.digest


def convert_generator(
    source: str,
    destination: str,
    *,
    label: int | None = None,
    conv_clamp: float | None = None,
    mapping_lr_multiplier: float | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> LoadedGenerator:
    """Rewrite a file of weights as .safetensors or .pt, by the destination's suffix, and load the result.

    A .pt keeps `conv_clamp` in an entry of ours, which other programs ignore. The file appears under its name
    only after it was read back: equal tensors, sizes and sampled image.

    Args:
        source: path or URL of the weights.
        destination: path or URL of the new file.
        label: the class of a conditional generator, from 0; None for the mean over its classes.
        conv_clamp: bound on activations, for files that cannot say it.
        mapping_lr_multiplier: what the stored weights of the mapping network are divided by, for such files.
        storage_options: passed to fsspec.

    Raises:
        CheckpointError: as `load_generator`, or another suffix, an existing destination, or a file that does
            not read back as it was written; or the file says a clamp or multiplier itself.
    """
    _encoder(destination)  # refuse a wrong name before the work
    _, checkpoint = _read_checkpoint(source, read_bytes(source, storage_options, wanted=KINDS), label)
    given = {"conv_clamp": conv_clamp, "mapping_lr_multiplier": mapping_lr_multiplier}
    if any(value is not None for value in given.values()):
        checkpoint = _with_assumed(source, checkpoint, given)
    return _write_verified(checkpoint, destination, storage_options)


def _with_assumed(
    location: str, checkpoint: CanonicalCheckpoint, given: Mapping[str, float | None]
) -> CanonicalCheckpoint:
    """A checkpoint with what its file could not say, and a note about it in the place of that on what was assumed."""
    notes = tuple(note for note in checkpoint.notes if not note.startswith(ASSUMED))
    told: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if len(notes) == len(checkpoint.notes):
        raise CheckpointError(f"{location} says {' and '.join(told)} itself: leave them out")
    if any(not 0 < value < math.inf for value in told.values()):
        raise CheckpointError(
            f"{' and '.join(f'{name} = {value}' for name, value in told.items())}; wanted numbers above 0"
        )
    note = ", ".join(f"{name} = {value:g}" for name, value in told.items())
    return replace(
        checkpoint, config=replace(checkpoint.config, **told), notes=(*notes, f"given when it was converted: {note}")
    )


def _read_checkpoint(location: str, data: bytes, label: int | None = None) -> tuple[str, CanonicalCheckpoint]:
    """The name of the format, and the checkpoint, by the content of the file."""
    try:
        if is_torch_file(data):
            check_torch_zip(data, wanted=KINDS)
            return from_generator_document(read_torch(data), label=label)
        if is_pickle(data):
            return from_generator_document(read_pickle(data), label=label)
        if is_safetensors(data):
            tensors, metadata = read_safetensors(data)
            if not metadata.get("kind"):  # weights alone, as other programs write them
                return from_generator_document(tensors, label=label)
            if label is not None:
                raise CheckpointError(f"label {label} was asked of a generator without classes: leave label out")
            return "safetensors", from_canonical(tensors, metadata)
        raise CheckpointError(f"it is {describe_other(data)}; wanted {KINDS}")
    except CheckpointError as error:
        raise CheckpointError(f"{location}: {error}") from error


def _encoder(location: str) -> Callable[[CanonicalCheckpoint], bytes]:
    suffix = posixpath.splitext(location)[1]
    if suffix == ".safetensors":
        return _encode_safetensors
    if suffix == ".pt":
        return _encode_torch
    raise CheckpointError(f"{location} ends in {suffix or 'no suffix'!r}; .safetensors and .pt can be written")


def _encode_safetensors(checkpoint: CanonicalCheckpoint) -> bytes:
    return safetensors.torch.save(
        {name: tensor.clone() for name, tensor in checkpoint.state.items()}, to_metadata(checkpoint)
    )


def _encode_torch(checkpoint: CanonicalCheckpoint) -> bytes:
    buffer = io.BytesIO()
    torch.save(to_rosinality_document(checkpoint), buffer)
    return buffer.getvalue()


def _write_verified(
    checkpoint: CanonicalCheckpoint, location: str, storage_options: Mapping[str, Any] | None
) -> LoadedGenerator:
    encode = _encoder(location)

    def read_back(data: bytes) -> LoadedGenerator:
        format_name, written = _read_checkpoint(location, data)
        generator = _check_same(location, checkpoint, written)
        return LoadedGenerator(generator, written.config, written.digest, format_name, written.notes)

    return write_verified(location, encode(checkpoint), read_back, storage_options)


def _check_same(location: str, wanted: CanonicalCheckpoint, written: CanonicalCheckpoint) -> Generator:
    """The generator that was written, if it has the wanted tensors and makes the wanted image."""
    differing = [name for name, tensor in wanted.state.items() if not _same_bits(tensor, written.state[name])]
    if written.config != wanted.config or differing:
        raise CheckpointError(
            f"{location} does not read back as it was written: sizes {written.config} for {wanted.config}, "
            f"other values in {', '.join(differing[:4]) or 'no tensor'}"
        )
    generator = build_generator(written)
    if not torch.equal(_sample_image(generator), _sample_image(build_generator(wanted))):
        raise CheckpointError(f"{location} has the same weights but makes another image; report this")
    return generator


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


@torch.no_grad()
def _sample_image(generator: Generator) -> Tensor:
    z = torch.randn(1, generator.config.z_dim, generator=torch.Generator().manual_seed(SAMPLE_SEED))
    return generator.synthesize(generator.map(z))
