"""Encoder weights: released files and our own, told apart by content, and whether they belong to a generator."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import safetensors.torch
import torch

from lsap_core.encoders.checkpoints import (
    EncoderCheckpoint,
    build_encoder,
    canonical_encoder_state,
    from_canonical_encoder,
    from_encoder_document,
    to_encoder_metadata,
)
from lsap_core.encoders.config import EncoderConfig, Heads
from lsap_core.encoders.encoder import Encoder
from lsap_core.errors import CheckpointError
from lsap_core.generators.checkpoints import CanonicalCheckpoint, read_torch
from lsap_core.generators.config import GeneratorConfig
from lsap_core.inversion.by_encoder import misfit
from tasks.digests import digest_of
from tasks.remembered import Remembered
from tasks.weights.files import (
    check_torch_zip,
    describe_other,
    is_safetensors,
    is_torch_file,
    open_weights,
    read_safetensors,
    version_of,
)
from tasks.weights.generators import LoadedGenerator

KINDS = "a released .pt (pSp, e4e, ReStyle, W encoder, GANInverter with LSAP_E) or a .safetensors of this project"
READ_BY = 2
"""Goes up when a file is read as another encoder than before, so that nothing remembered of it counts any more."""
_START_BYTES = 512
RTOL, ATOL = 1e-4, 1e-6  # between two conversions of one network


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder and where it came from.

    Attributes:
        encoder: the network, on the CPU, in eval mode, not frozen.
        config: its sizes.
        digest: SHA-256 of weights and configuration, the same for every file format that holds this network.
        layout: "psp", "e4e", "restyle", "w_encoder", "hfgi", "ganinverter" or "safetensors".
        options: what the file says about its training.
        generator: the weights of the generator in the same file, of which no network is made; or None.
        generator_digest: digest of the generator that it was trained with, or None when the file does not say.
        title: what to call it in reports, or None.
        notes: sentences about what the file did not say and what was done instead; to be shown and kept.
    """

    encoder: Encoder
    config: EncoderConfig
    digest: str
    layout: str
    options: dict[str, Any]
    generator: CanonicalCheckpoint | None
    generator_digest: str | None
    title: str | None
    notes: tuple[str, ...]


def load_encoder(
    path_or_url: str,
    *,
    generator_config: GeneratorConfig | None = None,
    name: str | None = None,
    heads: Heads | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> LoadedEncoder:
    """The encoder of a file, without running any code that the file holds.

    Args:
        path_or_url: a path, or a URL that fsspec knows (s3://, https://, memory://, ...).
        generator_config: sizes of the generator that it is wanted for: released files do not say all of theirs.
        name: what a run calls it: published names tell how heads make rows of W+ where the file does not.
        heads: how they do, for files that do not say it.
        storage_options: passed to fsspec.

    Raises:
        CheckpointError: there is no such file, or it is no encoder that can be read.
    """
    with open_weights(path_or_url, storage_options, wanted=KINDS) as file:
        checkpoint = _read_checkpoint(path_or_url, file, generator_config, name=name, heads=heads)
    return LoadedEncoder(
        encoder=build_encoder(checkpoint, copy=False),
        config=checkpoint.config,
        digest=checkpoint.digest,
        layout=checkpoint.layout,
        options=checkpoint.options,
        generator=checkpoint.decoder,
        generator_digest=checkpoint.generator_digest,
        title=checkpoint.title or None,
        notes=checkpoint.notes,
    )


@dataclass(frozen=True)
class EncoderFacts:
    """What a run has to know of an encoder before it begins.

    Attributes:
        config: its sizes.
        digest: of the encoder.
        title: what to call it in reports, or None.
        notes: sentences about what its file did not say and what was done instead.
    """

    config: EncoderConfig
    digest: str
    title: str | None
    notes: tuple[str, ...] = ()


def encoder_facts(
    location: str, generator: LoadedGenerator, *, name: str | None = None, heads: Heads | None = None
) -> EncoderFacts:
    """What an encoder is, and that its codes are those of a generator; its file is read once for each.

    A file counts as known by its place, size and time of change, or by what its store calls its version. Who computes
    with an encoder reads the whole file, and compares digests.

    Args:
        location: path or URL of the encoder.
        generator: the generator that is to make images of its codes.
        name: as for `load_encoder`.
        heads: as there.

    Raises:
        CheckpointError: it cannot be read, or is not of this generator.
    """
    version = version_of(location)
    remembered, key = Remembered("encoders"), ""
    if version is not None:
        key = digest_of([READ_BY, *version, generator.digest, name, heads])
        if found := remembered.get(key):
            return EncoderFacts(
                EncoderConfig.from_dict(found["config"]), found["digest"], found["title"], tuple(found["notes"])
            )
    loaded = load_encoder(location, generator_config=generator.config, name=name, heads=heads)
    check_generator(loaded, generator, location)
    if key:
        told = {"file": location, "config": loaded.config.to_dict(), "digest": loaded.digest, "title": loaded.title}
        remembered.put(key, {**told, "notes": list(loaded.notes)})
    return EncoderFacts(loaded.config, loaded.digest, loaded.title, loaded.notes)


def check_generator(loaded: LoadedEncoder, generator: LoadedGenerator, location: str) -> None:
    """Make sure that an encoder gives codes of this generator.

    A file of ours names its generator, most released ones hold it; of others only the sizes can be compared.

    Args:
        loaded: the encoder.
        generator: the generator that is to make images of its codes.
        location: of the encoder, for the message.

    Raises:
        CheckpointError: the encoder's codes are those of another generator.
    """
    if problem := misfit(loaded.config, generator.config):
        raise CheckpointError(f"{location}: {problem}")
    inside = loaded.generator
    if inside is not None:
        if inside.digest != generator.digest and not _is_same_network(inside, generator):
            raise CheckpointError(
                f"{location} holds an encoder and its generator, which has other weights than the generator of this "
                f"run (digest {generator.digest}): name the generator that the encoder was trained with, or another "
                "encoder"
            )
    elif loaded.generator_digest not in (None, generator.digest):
        raise CheckpointError(
            f"{location} holds an encoder of generator {loaded.generator_digest}, this run has {generator.digest}: "
            "name that generator (with its content box), or another encoder"
        )


def describe_encoder(
    path_or_url: str, *, heads: Heads | None = None, storage_options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a file of an encoder holds, as plain values for a table or JSON; `heads` where the file does not say them.

    Raises:
        CheckpointError: as `load_encoder`.
    """
    with open_weights(path_or_url, storage_options, wanted=KINDS) as file:
        checkpoint = _read_checkpoint(path_or_url, file, None, heads=heads, needs_heads=False)
        num_bytes = file.seek(0, io.SEEK_END)
    decoder, buffers = checkpoint.decoder, {"running_mean", "running_var", "w_avg"}
    return {
        "location": path_or_url,
        "layout": checkpoint.layout if checkpoint.knows_heads else "psp or e4e",
        "title": checkpoint.title or None,
        "num_bytes": num_bytes,
        "digest": checkpoint.digest if checkpoint.knows_heads else None,
        **checkpoint.config.to_dict(),
        **({} if checkpoint.knows_heads else {"heads": "not said"}),
        "num_parameters": sum(t.numel() for name, t in checkpoint.state.items() if name.split(".")[-1] not in buffers),
        "starts_from_mean": bool((checkpoint.state["w_avg"] != 0).any()),
        "generator_digest": checkpoint.generator_digest,
        "generator_in_file": None if decoder is None else f"StyleGAN2, {decoder.config.shown_size} px",
        "options": checkpoint.options,
        "notes": list(checkpoint.notes),
    }


def encode_encoder(
    encoder: Encoder, *, generator_digest: str | None, title: str = "", options: Mapping[str, Any] | None = None
) -> bytes:
    """The .safetensors file of an encoder.

    Args:
        encoder: the network.
        generator_digest: of the generator that it was trained with, or None when nobody knows.
        title: what to call it in reports.
        options: what else is worth knowing of its training, plain values for JSON.

    Raises:
        CheckpointError: a weight is not finite.
    """
    checkpoint = EncoderCheckpoint(
        encoder.config,
        canonical_encoder_state(encoder.config, encoder.state_dict(), what="the encoder"),
        layout="safetensors",
        options=dict(options or {}),
        generator_digest=generator_digest,
        title=title,
    )
    return safetensors.torch.save(checkpoint.state, to_encoder_metadata(checkpoint))


def _read_checkpoint(
    location: str,
    file: BinaryIO,
    generator_config: GeneratorConfig | None,
    *,
    name: str | None = None,
    heads: Heads | None = None,
    needs_heads: bool = True,
) -> EncoderCheckpoint:
    start = file.read(_START_BYTES)
    try:
        if is_torch_file(start):
            check_torch_zip(file, wanted=KINDS)
            return from_encoder_document(
                read_torch(file), generator_config=generator_config, heads=heads, name=name, needs_heads=needs_heads
            )
        if is_safetensors(start):
            return from_canonical_encoder(*read_safetensors(start + file.read()))
        raise CheckpointError(f"it is {describe_other(start)}; wanted {KINDS}")
    except CheckpointError as error:
        raise CheckpointError(f"{location}: {error}") from error


def _is_same_network(one: CanonicalCheckpoint, other: LoadedGenerator) -> bool:
    """Whether two files hold one network, maybe with another mean of W, other noise maps or another content box."""
    if replace(one.config, content_box=None, conv_clamp=None) != replace(
        other.config, content_box=None, conv_clamp=None
    ):
        return False
    weights = other.generator.named_parameters()
    return all(torch.allclose(one.state[name], weight, rtol=RTOL, atol=ATOL) for name, weight in weights)
