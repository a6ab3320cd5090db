"""HyperStyle in files: our own form of a hypernetwork, and the `.pt` layout of the released ones.

Those hold a hypernetwork, its generator, and the mean code that its W encoder starts from.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lsap_core.errors import CheckpointError, ConfigError
from lsap_core.generators.checkpoints import CanonicalCheckpoint, from_rosinality
from lsap_core.generators.config import GeneratorConfig
from lsap_core.images import COMPARISON_SIDE
from lsap_core.perceptual.published_weights import describe_document, named_tensors, with_weights
from lsap_core.refinement.hyperstyle_networks import HyperBackbone, HyperNetwork, HyperStyleConfig
from lsap_core.refinement.network_files import NetworkForm

WHAT = "the hypernetwork"
HYPERSTYLE = NetworkForm("hyperstyle", WHAT, HyperNetwork, HyperStyleConfig.from_dict)
HEAD = re.compile(r"refinement_blocks\.(\d+)\.(.+)")
OUTPUT = re.compile(r"^output\.\d+\.")
SHARED = "shared_weight_hypernet."
SEPARABLE = "SharedWeightsHyperNetResNetSeparable"
FACES = (COMPARISON_SIDE, COMPARISON_SIDE)
CARS = (192, 256)


@dataclass(frozen=True)
class HyperStyleCheckpoint:
    """One hypernetwork of a published file.

    Attributes:
        network: on the CPU, in eval mode.
        w_avg: [K, w_dim], where codes of its W encoder start, or None where the file does not say it.
        decoder: the generator in the same file, or None.
        notes: sentences about what was left alone.
    """

    network: HyperNetwork
    w_avg: Tensor | None
    decoder: CanonicalCheckpoint | None
    notes: tuple[str, ...] = ()


def from_hyperstyle_document(
    document: object,
    *,
    generator_config: GeneratorConfig | None = None,
    input_size: tuple[int, int] | None = None,
) -> HyperStyleCheckpoint:
    """The hypernetwork of a published checkpoint, with its generator where that is in the file.

    Which layers it changes is read from its heads. The shared matrices stand in the file once more for every head that
    uses them: all copies must be equal, and one is kept.

    Args:
        document: what `read_torch` found in the file.
        generator_config: the generator it is wanted for; by default the one in the file.
        input_size: height and width of the images it reads. By default what the options say (cars: 192 x 256), else
            the shape of the generator's picture with 256 on its longer side, else 256 x 256.

    Raises:
        CheckpointError: the file is another kind of checkpoint, or its tensors do not fit the generator.
    """
    hypernet, decoder_state, options, latent_avg = _sort(document)
    decoder = _read_decoder(decoder_state, latent_avg)
    generator = generator_config or (decoder.config if decoder else None)
    if generator is None:
        raise CheckpointError(
            f"{WHAT}: no generator is in the file, so its sizes are not known: name the generator too"
        )
    layers = sorted({int(match[1]) for match in map(HEAD.fullmatch, hypernet) if match})
    try:
        config = HyperStyleConfig(
            generator,
            tuple(layers),
            _read_backbone(options, hypernet),
            input_size or _read_input_size(options, generator_config),
        )
    except ConfigError as error:
        raise CheckpointError(
            f"{WHAT} does not belong to a generator of {generator.shown_size} pixels: {error}"
        ) from error
    state, notes = _our_state(hypernet, config)
    with torch.device("meta"):
        network = HyperNetwork(config)
    network = with_weights(network, state, WHAT).eval()
    for name, parameter in network.named_parameters():
        if not bool(torch.isfinite(torch.stack(torch.aminmax(parameter.detach()))).all()):  # one pass, without a copy
            raise CheckpointError(f"{WHAT}: {name} holds values that are not finite; the network is damaged")
    return HyperStyleCheckpoint(network, _read_w_avg(latent_avg, generator), decoder, notes)


def is_hyperstyle_document(document: object) -> bool:
    """Whether what `read_torch` found in a file looks like a HyperStyle checkpoint."""
    state = document.get("state_dict") if isinstance(document, Mapping) else None
    return any(name.startswith("hypernet.") for name in named_tensors(state))


def _sort(document: object) -> tuple[dict[str, object], dict[str, object], Mapping[Any, Any], object]:
    """Tensors of hypernetwork and decoder under published names, options, and the mean code."""
    if not is_hyperstyle_document(document):
        raise CheckpointError(
            f"wanted a HyperStyle checkpoint (state_dict with hypernet.*); found {describe_document(document)}"
        )
    assert isinstance(document, Mapping)
    tables: dict[str, dict[str, object]] = {"hypernet": {}, "decoder": {}}
    for name, value in named_tensors(document["state_dict"]).items():
        module, _, rest = name.partition(".")
        if module in tables:
            tables[module][rest.removeprefix("module.")] = value
    options = document.get("opts")
    if not isinstance(options, Mapping):
        options = vars(options) if hasattr(options, "__dict__") else {}
    return tables["hypernet"], tables["decoder"], options, document.get("latent_avg")


def _read_decoder(state: Mapping[str, Any], latent_avg: object) -> CanonicalCheckpoint | None:
    if not state:
        return None
    mean = latent_avg if isinstance(latent_avg, Tensor) else None
    if mean is not None and mean.ndim == 2:  # a mean for each row is the mean of W only where all rows are equal
        mean = mean[0] if bool((mean == mean[:1]).all()) else None
    try:
        return from_rosinality(state, mean)
    except CheckpointError as error:
        raise CheckpointError(f"the decoder in the file: {error}") from error


def _read_backbone(options: Mapping[Any, Any], names: Collection[str]) -> HyperBackbone:
    """Plain or separable heads: what the options say, else what the names of the tensors say."""
    told = options.get("encoder_type")
    is_separable = any("make_kernel_in" in name for name in names) if told is None else told == SEPARABLE
    return "resnet_34_separable" if is_separable else "resnet_34"


def _read_input_size(options: Mapping[Any, Any], generator: GeneratorConfig | None) -> tuple[int, int]:
    dataset = options.get("dataset_type")
    if isinstance(dataset, str) and "cars" in dataset:
        return CARS
    if generator is None:
        return FACES
    height, width = generator.content_size
    longest = max(height, width)
    return height * COMPARISON_SIDE // longest, width * COMPARISON_SIDE // longest


def _read_w_avg(latent_avg: object, generator: GeneratorConfig) -> Tensor | None:
    if latent_avg is None:
        return None
    wanted = (generator.num_ws, generator.w_dim)
    if isinstance(latent_avg, Tensor) and latent_avg.shape in (wanted, (1, wanted[1]), (wanted[1],)):
        return latent_avg.detach().to(device="cpu", dtype=torch.float32).expand(wanted).clone()
    found = list(latent_avg.shape) if isinstance(latent_avg, Tensor) else type(latent_avg).__name__
    raise CheckpointError(f"{WHAT}: latent_avg is {found}; wanted a mean code for each row, {list(wanted)}")


def _our_state(hypernet: Mapping[str, object], config: HyperStyleConfig) -> tuple[dict[str, object], tuple[str, ...]]:
    """Our names -> tensors, each of the shared matrices once, and notes; what nobody knows is refused by its name."""
    state: dict[str, object] = {}
    notes: list[str] = []
    indices = {layer.index for layer in config.shared_layers}
    for name, value in hypernet.items():
        head = HEAD.fullmatch(name)
        if head is None:
            ours = f"shared.{name.removeprefix(SHARED)}" if name.startswith(SHARED) else f"backbone.{name}"
        elif head[2].startswith("hypernet.") and int(head[1]) in indices:
            ours = f"shared.{head[2].removeprefix('hypernet.')}"
        else:
            ours = f"heads.{head[1]}.{OUTPUT.sub('output.', head[2])}"
        if ours in state and not _are_equal(state[ours], value):
            raise CheckpointError(
                f"{WHAT}: {name} differs from the other copies of the matrices that layers share: the file is damaged"
            )
        state[ours] = value
    if not indices:
        unused = [name for name in state if name.startswith("shared.")]
        for name in unused:
            del state[name]
        if unused:
            notes.append("the file has shared matrices that none of its layers uses; they were left alone")
    return state, tuple(notes)


def _are_equal(one: object, other: object) -> bool:
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return False
    is_same = one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()
    return is_same or torch.equal(one, other)
