"""The `.pt` layouts of pSp, e4e, ReStyle, W encoders, HFGI and GANInverter (LSAP_E)."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from lsap_core.encoders.checkpoints.canonical import EncoderCheckpoint, canonical_encoder_state
from lsap_core.encoders.config import Backbone, EncoderConfig, Heads
from lsap_core.encoders.latent_discriminator import LatentDiscriminator
from lsap_core.errors import CheckpointError, ConfigError
from lsap_core.generators.checkpoints.canonical import (
    CanonicalCheckpoint,
    build_generator,
    check_tensors,
    first_size,
    largest_index,
)
from lsap_core.generators.checkpoints.layouts import describe_generator_in, plain_name
from lsap_core.generators.checkpoints.rosinality import describe_torch_document, from_rosinality
from lsap_core.generators.config import GeneratorConfig
from lsap_core.images import COMPARISON_SIDE

WHAT = "the encoder"
HEAD = r"styles\.(\d+)\."
LARGEST_SIDE = 1 << 16
OPTIONS_DEPTH = 4
FACES = (COMPARISON_SIDE, COMPARISON_SIDE)
CARS = (192, 256)

HEADS_OF_TYPE: dict[str, Heads] = {
    "GradualStyleEncoder": "direct",
    "ResNetGradualStyleEncoder": "direct",
    "BackboneEncoder": "direct",
    "ResNetBackboneEncoder": "direct",
    "Encoder4Editing": "offsets",
    "ProgressiveBackboneEncoder": "offsets",
    "ResNetProgressiveBackboneEncoder": "offsets",
    "BackboneEncoderUsingLastLayerIntoW": "single",
    "SingleStyleCodeEncoder": "single",
    "WEncoder": "single",
}
"""How the classes of the published programs, by name, make rows of W+."""

HEADS_OF_METHOD: dict[str, Heads] = {
    "psp": "direct",
    "restyle_psp": "direct",
    "e4e": "offsets",
    "restyle_e4e": "offsets",
    "lsap_e": "offsets",
}
"""How the encoders of published methods, by name, make rows of W+; for files that do not say it."""

_FEATURES = (
    "a StyleFeatureEditor checkpoint, whose networks predict features of the generator: it refines codes, and is no "
    "encoder: name the file as refiner_networks.sfe of lsap run refine"
)
NO_ENCODERS = {
    "hypernet": "a HyperStyle checkpoint, whose hypernetwork changes the generator: it refines codes, and is no "
    "encoder: name the file as refiner_networks.hyperstyle of lsap run refine",
    "inverter": _FEATURES,
    "e4e_encoder": _FEATURES,
}
"""Modules of networks that are no encoders, and what a file with them is."""

MEAN_SAMPLES = 10_000
MEAN_SEED = 0

PREFIXES = {
    "input_layer.": "backbone.input_layer.",
    "body.": "backbone.body.",
    "conv1.": "backbone.conv1.",
    "bn1.": "backbone.bn1.",
    "relu.": "backbone.relu.",
    "latlayer1.": "pyramid.lateral1.",
    "latlayer2.": "pyramid.lateral2.",
    "styles.": "heads.",
    "linear.": "heads.0.linear.",
}
"""Published names -> ours, by their beginnings."""

LEFT_ALONE = {
    "residue": "HFGI's consultation encoder",
    "grid_align": "HFGI's alignment network",
    "res": "HFGI's consultation encoder",
    "align": "HFGI's alignment network",
}


@dataclass
class _Parts:
    """What a document holds, sorted: tensors of encoder and decoder under published names, and the rest."""

    encoder: dict[str, Any]
    decoder: dict[str, Any]
    discriminator: Any
    latent_avg: Any
    options: dict[str, Any]
    is_ganinverter: bool
    is_hfgi: bool = False
    knows_heads: bool = True
    notes: list[str] = field(default_factory=list)


def is_encoder_document(document: object) -> bool:
    """Whether what `read_torch` found in a file looks like one of the published encoder layouts."""
    if not isinstance(document, Mapping):
        return False
    if isinstance(document.get("encoder"), Mapping):
        return True
    modules = _modules_of(document)
    return "encoder" in modules and not modules & NO_ENCODERS.keys()


def _modules_of(document: Mapping[Any, Any]) -> set[str]:
    """First parts of the names in the entry `state_dict`, or in a document that is one itself."""
    state = document.get("state_dict", document)
    return (
        {plain_name(name).split(".")[0] for name in state if "." in str(name)} if isinstance(state, Mapping) else set()
    )


def from_encoder_document(
    document: object,
    *,
    input_size: tuple[int, int] | None = None,
    generator_config: GeneratorConfig | None = None,
    heads: Heads | None = None,
    name: str | None = None,
    needs_heads: bool = True,
) -> EncoderCheckpoint:
    """The encoder of a published checkpoint, with its generator and discriminator where they are in the file.

    Names may carry the `module.` of distributed training at any level. Of more heads than the generator has rows
    the first are used, and a note says so. `w_avg` is the file's `latent_avg`, or that of the generator in the file, or
    zeros where its options say that codes do not start from it. Training state (optimizers, counters) is left alone.

    Args:
        document: what `read_torch` found in the file.
        input_size: height and width of the images it reads. By default what the options say (cars: 192 x 256),
            else the shape of the generator's content box with 256 on its longer side, else 256 x 256.
        generator_config: the generator it is wanted for; by default the one in the file.
        heads: how its heads make rows of W+, for files that do not say it.
        name: what a run calls it; where neither file nor `heads` say it, published names do.
        needs_heads: whether a file is refused whose heads nobody knows; else they count as "direct", and the checkpoint
            says so.

    Raises:
        CheckpointError: the file is another kind of checkpoint, it does not say what it must, or its tensors do
            not fit; missing and unexpected ones are named.
    """
    parts = _sort(document)
    decoder = _read_decoder(parts)
    generator = generator_config or (decoder.config if decoder else None)
    config = _read_config(parts, _read_heads(parts, heads, name, needs_heads), generator, input_size, generator_config)
    state = {_our_name(name): tensor for name, tensor in _first_heads(config, parts).items()}
    state["w_avg"] = _read_w_avg(config, parts, decoder)
    return EncoderCheckpoint(
        config,
        canonical_encoder_state(config, state, what=WHAT),
        layout=_layout(config, parts),
        options=parts.options,
        notes=(*parts.notes, *(f"generator: {note}" for note in (decoder.notes if decoder else ()))),
        decoder=decoder,
        discriminator=_read_discriminator(parts.discriminator, config.w_dim),
        knows_heads=parts.knows_heads,
    )


def _sort(document: object) -> _Parts:
    """The parts of either layout, `state_dict` with prefixes or entries of their own.

    Raises:
        CheckpointError: the document is neither.
    """
    if not is_encoder_document(document):
        raise CheckpointError(
            "wanted an encoder checkpoint (pSp, e4e, ReStyle, W encoder: state_dict with encoder.*; GANInverter: "
            f"entry encoder); found {_describe(document)}"
        )
    assert isinstance(document, Mapping)
    is_ganinverter = isinstance(document.get("encoder"), Mapping)
    if is_ganinverter:
        tables = _by_module(document["encoder"])
        decoder = document.get("decoder")
        if isinstance(decoder, Mapping):
            tables["decoder"] = _by_module({f"decoder.{name}": tensor for name, tensor in decoder.items()})["decoder"]
        if "encoder" not in tables:
            raise CheckpointError(
                f"the entry encoder holds no encoder.*; found {', '.join(sorted(tables)[:6]) or 'nothing'}: "
                "it is no checkpoint of GANInverter"
            )
        others = set(document)
    else:
        state = document.get("state_dict", document)
        tables = _by_module({name: value for name, value in state.items() if isinstance(value, Tensor)})
        others = set(tables)
    latent_avg = document.get("latent_avg")
    if latent_avg is None:
        latent_avg = tables.get("latent_avg", {}).get("")
    if isinstance(latent_avg, Tensor):
        check_tensors({"latent_avg": latent_avg}, {"latent_avg": tuple(latent_avg.shape)}, what=WHAT)
    found = [name for name in LEFT_ALONE if name in others]
    return _Parts(
        encoder=tables["encoder"],
        decoder=tables.get("decoder", {}),
        discriminator=document.get("discriminator_state_dict"),
        latent_avg=latent_avg,
        options=_read_options(document.get("opts")),
        is_ganinverter=is_ganinverter,
        is_hfgi=bool(found),
        notes=[f"{LEFT_ALONE[name]} ({name}) is in the file too and was left alone" for name in found],
    )


def _by_module(state: Mapping[Any, Any]) -> dict[str, dict[str, Any]]:
    """Tensors by the first part of their names, without `module.`."""
    tables: dict[str, dict[str, Any]] = {}
    for name, tensor in state.items():
        module, _, rest = plain_name(name).partition(".")
        table = tables.setdefault(module, {})
        if rest in table:
            raise CheckpointError(f"{WHAT}: {module}.{rest} is there twice, with and without module.")
        table[rest] = tensor
    return tables


def _describe(document: object) -> str:
    if isinstance(document, Mapping):
        keys = {plain_name(key).split(".")[0] for key in document}
        state = document.get("state_dict")
        modules = {plain_name(key).split(".")[0] for key in state} if isinstance(state, Mapping) else set()
        if "g_ema" in keys:
            return "a generator checkpoint (entry g_ema): pass it as the generator"
        if others := sorted((keys | modules) & NO_ENCODERS.keys()):
            return NO_ENCODERS[others[0]]
        if {"input_layer", "body", "output_layer"} <= keys:
            return "the face recognition network that encoders start from (ArcFace): pass it as the backbone"
        if {"input_layer", "body"} <= keys or {"conv1", "body"} <= keys:
            return 'the bare weights of an encoder: save them as {"state_dict": {"encoder." + name: tensor}, ...}'
    return describe_generator_in(document) or describe_torch_document(document)


def _read_options(options: object) -> dict[str, Any]:
    """The options of the training, as plain values."""
    if isinstance(options, argparse.Namespace):
        options = vars(options)
    if not isinstance(options, Mapping):
        return {}
    return {str(name)[:100]: _as_plain(value, OPTIONS_DEPTH) for name, value in options.items()}


def _as_plain(value: object, depth: int) -> Any:
    """Values of JSON; of everything else, and of what is nested deeper (or in itself), the type."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping) and depth > 0:
        return {str(name): _as_plain(item, depth - 1) for name, item in value.items()}
    if isinstance(value, list | tuple) and depth > 0:
        return [_as_plain(item, depth - 1) for item in value]
    return f"({type(value).__name__})"


def _read_decoder(parts: _Parts) -> CanonicalCheckpoint | None:
    if not parts.decoder:
        return None
    latent_avg = parts.latent_avg
    if isinstance(latent_avg, Tensor) and latent_avg.ndim == 2:
        # A mean for each row is the mean of W only where all rows are equal.
        latent_avg = latent_avg[0] if bool((latent_avg == latent_avg[:1]).all()) else None
    try:
        return from_rosinality(parts.decoder, latent_avg)
    except CheckpointError as error:
        raise CheckpointError(f"the decoder in the file: {error}") from error


def _read_heads(parts: _Parts, wanted: Heads | None, name: str | None, needs_heads: bool) -> Heads:
    """How the heads make rows, from the class that the options name, the tensors, or other options."""
    found = _heads_of_file(parts)
    if found is not None and wanted is not None and found != wanted:
        raise CheckpointError(f'{WHAT}: its file says "{found}" heads, "{wanted}" were asked for: leave heads out')
    if found is not None or wanted is not None:
        if found is None:
            parts.notes.append(f"the file does not say how its heads make rows of W+; {wanted} was given")
        return found or cast(Heads, wanted)
    if name in HEADS_OF_METHOD:
        heads = HEADS_OF_METHOD[name]
        parts.notes.append(f"the file does not say how its heads make rows of W+; {heads}, as {name} has, was assumed")
        return heads
    if needs_heads:
        field = f"heads.{name or 'NAME'}"
        raise CheckpointError(
            f"{WHAT}: the file does not say whether its heads give rows of W+ or offsets to the first row (opts have "
            f"no encoder_type): set {field} in the run or domain file, to direct for one like pSp or offsets for one "
            f"like e4e and LSAP_E, or give it the name of its method ({', '.join(HEADS_OF_METHOD)})"
        )
    parts.knows_heads = False
    return "direct"


def _heads_of_file(parts: _Parts) -> Heads | None:
    named = parts.options.get("encoder_type")
    if named is not None:
        if named not in HEADS_OF_TYPE:
            raise CheckpointError(
                f"{WHAT} is a {str(named)[:100]}; supported are {', '.join(HEADS_OF_TYPE)}: convert it to one of them"
            )
        return HEADS_OF_TYPE[named]
    if "linear.weight" in parts.encoder and not any(name.startswith("styles.") for name in parts.encoder):
        return "single"
    if parts.is_ganinverter:
        parts.notes.append("the file names no encoder_type; Encoder4Editing, the default of GANInverter, was assumed")
        return "offsets"
    if "stylegan_size" in parts.options or parts.discriminator is not None:
        parts.notes.append("the file names no encoder_type; Encoder4Editing was assumed, as it looks like e4e's")
        return "offsets"
    return None


def _read_config(
    parts: _Parts,
    heads: Heads,
    generator: GeneratorConfig | None,
    input_size: tuple[int, int] | None,
    wanted_generator: GeneratorConfig | None,
) -> EncoderConfig:
    backbone: Backbone = "resnet_34" if "conv1.weight" in parts.encoder else "ir_se_50"
    image_channels, is_iterative = _read_channels(parts.encoder, generator)
    try:
        return EncoderConfig(
            heads,
            backbone,
            num_ws=_read_rows(parts, heads, generator),
            w_dim=first_size(parts.encoder, ("styles.0.linear.weight", 0), ("linear.weight", 0)),
            input_size=_read_input_size(parts, input_size, wanted_generator),
            image_channels=image_channels,
            is_iterative=is_iterative,
            has_pyramid="latlayer1.weight" in parts.encoder,
        )
    except ConfigError as error:
        raise CheckpointError(f"{WHAT}: {error}") from error


def _read_input_size(
    parts: _Parts, wanted: tuple[int, int] | None, generator_config: GeneratorConfig | None
) -> tuple[int, int]:
    if wanted is not None:
        return wanted
    dataset = parts.options.get("dataset_type")
    if isinstance(dataset, str) and "cars" in dataset:
        return CARS
    if generator_config is None:
        return FACES
    height, width = generator_config.content_size
    longest = max(height, width)
    return height * COMPARISON_SIDE // longest, width * COMPARISON_SIDE // longest


def _read_channels(encoder: Mapping[str, Any], generator: GeneratorConfig | None) -> tuple[int, bool]:
    """Channels of one image, and whether the first layer reads two of them."""
    found = first_size(encoder, ("input_layer.0.weight", 1), ("conv1.weight", 1))
    choices = (generator.image_channels,) if generator else (1, 3, 4)
    for channels in choices:
        if found in (channels, 2 * channels):
            return channels, found != channels
    raise CheckpointError(
        f"{WHAT} reads {found} channels; wanted {' or '.join(map(str, choices))} for images of the generator, or "
        "twice as many (ReStyle). Encoders of sketches and label maps are not for inversion"
    )


def _read_rows(parts: _Parts, heads: Heads, generator: GeneratorConfig | None) -> int:
    """The number of rows: the generator's, else that of the heads, the mean, or the resolution in the options."""
    if heads == "single":
        rows = generator.num_ws if generator else _rows_of_mean(parts.latent_avg) or _rows_of_options(parts.options)
        if rows is None:
            raise CheckpointError(
                f"{WHAT} gives one w and does not say for how many rows: it is read beside a generator, as in a run"
            )
        return rows
    heads_in_file = sorted({largest_index(HEAD, [name], default=-1) for name in parts.encoder} - {-1})
    in_file = len(heads_in_file)
    if heads_in_file != list(range(in_file)):
        raise CheckpointError(f"{WHAT} has the heads {heads_in_file[:20]}; wanted them from 0 on without gaps")
    rows = generator.num_ws if generator else in_file
    if in_file < rows:
        raise CheckpointError(
            f"{WHAT} has {in_file} heads, the generator has {rows} rows of W+: use the generator that it was "
            "trained with"
        )
    if in_file > rows:
        parts.notes.append(f"the file has {in_file} heads; the generator has {rows} rows, so the first were used")
    return rows


def _rows_of_mean(latent_avg: object) -> int | None:
    if isinstance(latent_avg, Tensor) and latent_avg.ndim == 2 and latent_avg.shape[0] > 1:
        return latent_avg.shape[0]
    return None


def _rows_of_options(options: Mapping[str, Any]) -> int | None:
    for name in ("output_size", "stylegan_size", "resolution"):
        side = options.get(name)
        if isinstance(side, int) and 8 <= side <= LARGEST_SIDE:
            return 2 * (side.bit_length() - 1) - 2
    return None


def _first_heads(config: EncoderConfig, parts: _Parts) -> dict[str, Any]:
    """The tensors without heads that the generator has no row for."""
    if config.heads == "single":
        return parts.encoder
    last = config.num_ws - 1
    return {name: tensor for name, tensor in parts.encoder.items() if largest_index(HEAD, [name], default=-1) <= last}


def _our_name(name: str) -> str:
    """Our name of a published tensor; what nobody knows keeps its name, and is refused by it."""
    for published, ours in PREFIXES.items():
        if name.startswith(published):
            return ours + name.removeprefix(published)
    return name


def _read_w_avg(config: EncoderConfig, parts: _Parts, decoder: CanonicalCheckpoint | None) -> Tensor:
    """Where codes start, [K, w_dim], from [w_dim], [1, w_dim] or [K' >= K, w_dim]."""
    wanted = (config.num_ws, config.w_dim)
    # ReStyle starts from the mean whatever its options say.
    if parts.options.get("start_from_latent_avg") is False and not config.is_iterative:
        return torch.zeros(wanted)
    found = parts.latent_avg
    if found is None and decoder is not None and decoder.config.w_dim == config.w_dim:
        parts.notes.append(
            f"the file has no latent_avg; the mean of {MEAN_SAMPLES} codes of the generator in it was taken (NumPy's "
            f"RandomState({MEAN_SEED}))"
        )
        found = _mean_of_w(decoder)
    if found is None:
        raise CheckpointError(
            f"{WHAT} starts from the mean of W and the file has no latent_avg: add that of its generator as the "
            "entry latent_avg, or start_from_latent_avg = False to its opts if it was trained without"
        )
    if isinstance(found, Tensor) and 1 <= found.ndim <= 2 and found.numel() > 0:
        rows = found.detach().reshape(-1, found.shape[-1])
        if config.heads == "single":
            rows = rows[:1]
        if rows.shape[1] == config.w_dim and (rows.shape[0] == 1 or rows.shape[0] >= config.num_ws):
            return rows.to(torch.float32).expand(max(rows.shape[0], config.num_ws), -1)[: config.num_ws].clone()
    shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
    raise CheckpointError(
        f"{WHAT}: latent_avg is {shape}; wanted the mean of W, [{config.w_dim}], or one for each row, {list(wanted)}"
    )


@torch.no_grad()
def _mean_of_w(decoder: CanonicalCheckpoint) -> Tensor:
    """The mean of W, [w_dim]: in float64, so that every machine rounds it to the same float32."""
    mapping = build_generator(decoder).mapping.double()
    z = np.random.RandomState(MEAN_SEED).standard_normal((MEAN_SAMPLES, decoder.config.z_dim))
    mean: Tensor = mapping(torch.from_numpy(z)).mean(dim=0)
    return mean.float()


def _read_discriminator(state: object, w_dim: int) -> dict[str, Tensor] | None:
    """The latent discriminator that was trained beside the encoder."""
    if not isinstance(state, Mapping):
        return None
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in LatentDiscriminator(w_dim).state_dict().items()}
    tensors = {plain_name(name): tensor for name, tensor in state.items()}
    check_tensors(tensors, shapes, what="the latent discriminator in the file")
    return {name: tensors[name].detach().to(device="cpu", dtype=torch.float32).contiguous() for name in shapes}


def _layout(config: EncoderConfig, parts: _Parts) -> str:
    if parts.is_ganinverter:
        return "ganinverter"
    if parts.is_hfgi:
        return "hfgi"
    if config.is_iterative:
        return "restyle"
    return {"direct": "psp", "offsets": "e4e", "single": "w_encoder"}[config.heads]
