"""How many images a worker embeds at once: what fits into its memory, measured once and remembered."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lsap_archive import item_bytes
from lsap_core.errors import ConfigError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.presets import Method, recorded_settings
from tasks.archived.opening import geometry_of
from tasks.digests import digest_of
from tasks.errors import LESS_MEMORY, OutOfMemoryError
from tasks.inversion.methods import kept_arrays
from tasks.inversion.probe import Probed, probe, probe_here
from tasks.inversion.request import InversionRequest
from tasks.machine_memory import in_words
from tasks.remembered import Remembered
from tasks.weights.devices import bytes_of_image, free_memory, probe_device

logger = logging.getLogger(__name__)

SHARE = 0.8
"""Of what is free: the rest is for the command, and for what the memory is not given back of at once."""
CERTAIN = 1 / 4
"""Of a worker's room: batches that are estimated to take less are not tried."""
LPIPS_BYTES = 400 * 2**20  # of an image of 256 px in VGG16, forward and back
GENERATOR_FACTOR = 2  # of the least that an image takes


@dataclass(frozen=True)
class Footprint:
    """What a worker takes at its peak: held_bytes + N x image_bytes with batches of N images.

    Attributes:
        held_bytes: its networks, libraries, and the results of a shard.
        image_bytes: each image of a batch.
        image_seconds: of an image, in the largest batch that was tried.
    """

    held_bytes: int
    image_bytes: int
    image_seconds: float

    def of(self, batch: int) -> int:
        """Bytes with batches of so many images."""
        return self.held_bytes + batch * self.image_bytes

    def most(self, room: int) -> int:
        """The largest batch that fits; 0 where none does."""
        return max(0, (room - self.held_bytes) // max(self.image_bytes, 1))

    @classmethod
    def of_probes(cls, probed: list[Probed]) -> Footprint:
        """From the peaks of one image and of two; where two had no room, from what one took beside the networks."""
        first, last = probed[0], probed[-1]
        each = first.peak_bytes - first.held_bytes
        if last.batch > first.batch:
            each = max((last.peak_bytes - first.peak_bytes) // (last.batch - first.batch), 1)
        return cls(max(first.peak_bytes - first.batch * each, 0), each, last.seconds / last.batch)


def room_of_worker(request: InversionRequest, *, held_bytes: int = 0) -> int:
    """Bytes that each worker may take of the memory of this machine's device.

    Args:
        request: how many there are, and what they may take where that is said.
        held_bytes: what the worker that asks, and so each of them, has of it already.
    """
    if request.memory_bytes is not None:
        return request.memory_bytes
    device = probe_device(request.device)
    sharing = request.num_workers
    if device.type == "cuda":
        sharing = -(-request.num_workers // max(torch.cuda.device_count(), 1))
    return held_bytes + int(SHARE * free_memory(device) / sharing)


def is_certain(request: InversionRequest, method: Method, config: GeneratorConfig, room: int) -> bool:
    """Whether the largest batch has room by far, so that nothing need be tried."""
    each = GENERATOR_FACTOR * bytes_of_image(config, goes_back=bool(method.settings.trace_terms))
    if request.networks.perceptual.startswith("lpips") or request.networks.metric_perceptual.startswith("lpips"):
        each += LPIPS_BYTES
    return _shard_bytes(request, method, config) + request.batch_size * each < CERTAIN * room


def footprint_of(
    request: InversionRequest, method: Method, config: GeneratorConfig, *, certain: bool = False
) -> Footprint:
    """What a worker takes for a method, as it was measured on this machine's device, now or before.

    Args:
        request: what is asked for.
        method: one of its methods.
        config: of its generator.
        certain: that memory is no question: then it is tried in this process, with the batch that is asked for.

    Raises:
        ProbeRanOutError: not even one image has room.
    """
    found: list[Probed] = []
    if certain:
        probe_here(request, method, sorted({1, min(2, request.batch_size), request.batch_size}), found.append)
    elif kept := _kept(request, method, config).get("probed"):
        found = [Probed(**one) for one in kept]
    else:
        found = probe(request, method)
        _remember(request, method, config, probed=[asdict(one) for one in found])
    measured = Footprint.of_probes(found)
    return dataclasses.replace(measured, held_bytes=measured.held_bytes + _shard_bytes(request, method, config))


def batch_that_fits(
    request: InversionRequest, method: Method, config: GeneratorConfig, *, held_bytes: int = 0, halvings: int = 0
) -> int:
    """Images of a batch: as many as were asked for, or fewer where memory is not enough.

    Args:
        request: what is asked for; whoever insists on a number of images gets it, until memory ran out with it.
        method: one of its methods.
        config: of its generator.
        held_bytes: what the worker that asks has of its memory already.
        halvings: how often a worker's process was ended in this run because memory ran out.

    Raises:
        ConfigError: not even one image has room; with the figures.
        OutOfMemoryError: processes were ended also with one image at a time.
    """
    batch, room = request.batch_size, room_of_worker(request, held_bytes=held_bytes)
    if request.fits_batch and not is_certain(request, method, config, room):
        footprint = footprint_of(request, method, config)
        most = footprint.most(room)
        if most == 0:
            raise ConfigError(too_little(request, method, footprint, 1, room))
        if most < batch:
            logger.warning(
                "%s: batches of %d images instead of %d: a worker has room for %s, and takes %s with them",
                *(method.name, most, batch, in_words(room), in_words(footprint.of(most))),
            )
        batch = min(batch, most)
    if halvings:
        if not (tried := batch >> (halvings - 1)):
            raise OutOfMemoryError(
                f"{method.name}: the process of a worker was ended for want of memory also with one image at a time; a "
                f"worker has room for {in_words(room)} now: {LESS_MEMORY}"
            )
        ran_out(request, method, config, tried)
        batch = max(1, batch >> halvings)
        logger.warning("%s: batches of %d images: with %d memory ran out", method.name, batch, tried)
    too_many = _kept(request, method, config).get("too_many")
    return min(batch, max(1, too_many // 2)) if too_many else batch


def ran_out(request: InversionRequest, method: Method, config: GeneratorConfig, tried: int) -> None:
    """Remember that memory was not enough for batches of so many images."""
    before = _kept(request, method, config).get("too_many")
    _remember(request, method, config, too_many=min(tried, before or tried))


def too_little(request: InversionRequest, method: Method, footprint: Footprint, batch: int, room: int) -> str:
    """What whoever asked has to know of a batch that has no room."""
    most = footprint.most(room)
    way_out = (
        f"wanted batches of at most {most}, or batch_size: auto"
        if most
        else "make workers.count or shard_rows smaller, or take a machine with more of it"
    )
    several = f"each of {request.num_workers} workers" if request.num_workers > 1 else "a worker"
    return (
        f"batch_size: batches of {batch} of {method.name} take {in_words(footprint.of(batch))} of memory "
        f"({in_words(footprint.held_bytes)} and {in_words(footprint.image_bytes)} for each image), and {several} has "
        f"room for {in_words(room)} on {_device_name(request)}: {way_out}"
    )


def _shard_bytes(request: InversionRequest, method: Method, config: GeneratorConfig) -> int:
    """Results of a shard, and the copies that are made of the largest array while it is written."""
    each = sum(item_bytes(array) for array in kept_arrays(method, geometry_of(config)))
    return int(1.5 * request.shard_rows * each)


def _device_name(request: InversionRequest) -> str:
    device = probe_device(request.device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _key(request: InversionRequest, method: Method, config: GeneratorConfig) -> str:
    """Everything that memory depends on."""
    networks = request.networks
    return digest_of(
        [
            _device_name(request),
            torch.__version__,
            config.to_dict(),
            recorded_settings(method.settings),
            method.encoder and request.encoders.get(method.encoder),
            [networks.perceptual, networks.metric_perceptual, networks.identity, networks.judge],
        ]
    )


def _kept(request: InversionRequest, method: Method, config: GeneratorConfig) -> dict[str, Any]:
    return Remembered("batches").get(_key(request, method, config)) or {}


def _remember(request: InversionRequest, method: Method, config: GeneratorConfig, **values: Any) -> None:
    about = {"device": _device_name(request), "size": config.shown_size, "method": method.name}
    kept = _kept(request, method, config)
    Remembered("batches").put(_key(request, method, config), {**about, **kept, **values})
