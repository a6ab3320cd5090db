"""Files that a training starts from: a trained backbone, an Inverter, a discriminator."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TypeVar

from lsap_core.errors import CheckpointError, ConfigError
from lsap_core.generators.checkpoints import read_records, read_torch
from lsap_core.generators.checkpoints.discriminators import from_nvlabs_discriminator_document
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.discriminator import Discriminator
from lsap_core.refinement.sfe_checkpoints import sfe_discriminator
from lsap_core.refinement.sfe_networks import SfeNetworks, sfe_misfit
from tasks.weights.files import check_torch_zip, describe_other, is_pickle, is_torch_file, read_bytes
from tasks.weights.refiners import load_refiner_networks

DISCRIMINATORS = "the .pkl of the generator's training, with its network D, or a full .pt of StyleFeatureEditor"

Read = TypeVar("Read")


def digest_of_file(path: str) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256.

    Raises:
        CheckpointError: there is no such file.
    """
    return hashlib.sha256(read_bytes(path, None, wanted="weights")).hexdigest()[:16]


def from_torch_file(field: str, path: str, read: Callable[[object], Read], *, wanted: str) -> Read:
    """What a function makes of the document of a `.pt` or `.pth`.

    Args:
        field: where the path was given, for messages.
        path: a path or URL.
        read: takes what `read_torch` finds.
        wanted: the kinds of file that would do, for messages.

    Raises:
        CheckpointError: there is no such file, or it holds something else.
    """
    data = read_bytes(path, None, wanted=wanted)
    try:
        if not is_torch_file(data):
            raise CheckpointError(f"it is {describe_other(data)}; wanted {wanted}")
        check_torch_zip(data, wanted=wanted)
        return read(read_torch(data))
    except CheckpointError as error:
        raise CheckpointError(f"{field} {path}: {error}") from error


def load_inverter(path: str, generator: GeneratorConfig) -> SfeNetworks:
    """Networks of StyleFeatureEditor with the Inverter that a Feature Editor is trained for.

    Raises:
        CheckpointError: there is no such file, or it holds something else.
        ConfigError: they are of another generator.
    """
    networks = load_refiner_networks(path, generator).networks
    if not isinstance(networks, SfeNetworks):
        raise CheckpointError(
            f"inverter {path}: it holds a {type(networks).__name__}; wanted networks of StyleFeatureEditor, such as "
            "those that `refiner: sfe_inverter` trains"
        )
    if problem := sfe_misfit(networks.config, generator):
        raise ConfigError(f"inverter {path}: {problem}")
    return networks


def load_discriminator(path: str, generator: GeneratorConfig) -> Discriminator:
    """The discriminator of a file, for images of a generator: on the CPU, in eval mode, not frozen.

    Raises:
        CheckpointError: there is no such file, it holds none, or one for other images.
    """
    data = read_bytes(path, None, wanted=DISCRIMINATORS)
    found: Discriminator | None
    if is_torch_file(data):
        found = from_torch_file("discriminator", path, sfe_discriminator, wanted=DISCRIMINATORS)
    elif is_pickle(data):
        found = from_nvlabs_discriminator_document(read_records(data))
    else:
        raise CheckpointError(f"discriminator {path}: it is {describe_other(data)}; wanted {DISCRIMINATORS}")
    if found is None:
        raise CheckpointError(f"discriminator {path}: none is in it; wanted {DISCRIMINATORS}")
    channels, side = found.from_rgb.weight.shape[1], 4 << len(found.blocks)
    if (channels, side, side) != generator.image_shape:
        raise CheckpointError(
            f"discriminator {path}: it looks at images of {side} pixels with {channels} channels; wanted "
            f"{generator.shown_size} pixels with {generator.image_channels}, as the generator makes them"
        )
    return found


def check_files(files: Mapping[str, str], *, known: tuple[str, ...], title: str) -> None:
    """Refuse a file that a training has no use for.

    Raises:
        ConfigError: there is one.
    """
    for field in files:
        if field not in known:
            raise ConfigError(f"{field}: the training of {title} starts from no such file; leave {field} out")
