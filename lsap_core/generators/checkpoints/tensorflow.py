"""TensorFlow pickles of StyleGAN2 (NVlabs/stylegan2), translated by way of NVlabs' PyTorch names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsap_core.errors import CheckpointError
from lsap_core.generators.checkpoints.canonical import CanonicalCheckpoint
from lsap_core.generators.checkpoints.nvlabs import from_nvlabs
from lsap_core.generators.checkpoints.unpickling import ArrayRecord, TensorFlowNetwork

FIRST_STYLEGAN2_VERSION = 4
MAX_DEPTH = 4

Array = np.ndarray[Any, np.dtype[Any]]

# TensorFlow's option -> NVlabs' PyTorch option: of the network, its mapping network, its synthesis network.
_NETWORK_OPTIONS = {
    "latent_size": "z_dim",
    "label_size": "c_dim",
    "dlatent_size": "w_dim",
    "resolution": "img_resolution",
    "num_channels": "img_channels",
}
_MAPPING_OPTIONS = {
    "mapping_layers": "num_layers",
    "mapping_fmaps": "layer_features",
    "label_fmaps": "embed_features",
    "mapping_nonlinearity": "activation",
    "mapping_lrmul": "lr_multiplier",
}
_SYNTHESIS_OPTIONS = {
    "fmap_base": "channel_base",
    "fmap_max": "channel_max",
    "num_fp16_res": "num_fp16_res",
    "conv_clamp": "conv_clamp",
    "architecture": "architecture",
    "resample_kernel": "resample_filter",
    "use_noise": "use_noise",
    "nonlinearity": "activation",
}
_IGNORED_OPTIONS = {
    "truncation_psi",
    "truncation_cutoff",
    "style_mixing_prob",
    "structure",
    "fused_modconv",
    "w_avg_beta",
    "randomize_noise",
    "func_name",
}
_LAYERS = {"Conv": "conv1", "Conv0_up": "conv0", "Conv1": "conv1", "ToRGB": "torgb"}
_PARTS = {"mod_weight": "affine.weight", "mod_bias": "affine.bias"}


def is_tensorflow(document: object) -> bool:
    """Whether a pickle holds TensorFlow networks: (G, D, Gs), or a single one."""
    networks = document if isinstance(document, tuple) else (document,)
    return bool(networks) and all(isinstance(network, TensorFlowNetwork) for network in networks)


def from_tensorflow_document(document: object) -> CanonicalCheckpoint:
    """The averaged generator Gs of a TensorFlow pickle, whose source code stays unread.

    Args:
        document: what `read_records` found in the file.

    Raises:
        CheckpointError: the networks are older than StyleGAN2, of another architecture, or their variables do
            not fit.
    """
    network = document[-1] if isinstance(document, tuple) else document
    if not isinstance(network, TensorFlowNetwork):
        raise CheckpointError(f"wanted TensorFlow networks; found {type(document).__name__}")
    version = network.state.get("version")
    if not isinstance(version, int) or version < FIRST_STYLEGAN2_VERSION:
        raise CheckpointError(
            f"the TensorFlow network has version {version!r}: it is older than StyleGAN2, whose files have "
            f"{FIRST_STYLEGAN2_VERSION} or more; StyleGAN1 has other style vectors and is not supported"
        )
    options = network.state.get("static_kwargs")
    if not isinstance(options, Mapping):
        raise CheckpointError("the TensorFlow network does not say what it was made with: no static_kwargs")
    variables = _variables(network, "", 0)
    state = dict(_translate(name, values) for name, values in variables if not name.endswith("lod"))
    return from_nvlabs(state, _init_kwargs(options))


def _variables(network: TensorFlowNetwork, prefix: str, depth: int) -> Iterator[tuple[str, Array]]:
    """The variables of a network and its components, as `component/variable`."""
    variables, components = network.state.get("variables"), network.state.get("components") or {}
    if not isinstance(variables, list) or not isinstance(components, Mapping) or depth > MAX_DEPTH:
        raise CheckpointError(f"the TensorFlow network {prefix or '(top)'} has no list of variables")
    for variable in variables:
        match variable:
            case (str(name), ArrayRecord(array=np.ndarray() as values)):
                yield prefix + name, values
            case (str(name), float(number)):
                yield prefix + name, np.array(number)
            case _:
                raise CheckpointError(f"the TensorFlow network {prefix or '(top)'} has a variable without values")
    for name, component in components.items():
        if not isinstance(component, TensorFlowNetwork):
            raise CheckpointError(f"the TensorFlow network's component {name} is {type(component).__name__}")
        yield from _variables(component, f"{prefix}{name}/", depth + 1)


def _translate(name: str, values: Array) -> tuple[str, Tensor]:
    """NVlabs' PyTorch name and tensor of a variable; unknown names stay as they are, to be refused later."""
    if re.search(r"ToRGB_lod\d+/", name):
        raise CheckpointError(f'{name} belongs to the architecture "orig"; only "skip" is supported')
    new_name = name
    if name == "dlatent_avg":
        new_name = "mapping.w_avg"
    elif match := re.fullmatch(r"mapping/Dense(\d{1,3})/(weight|bias)", name):
        new_name, values = f"mapping.fc{match[1]}.{match[2]}", values.T
    elif name == "synthesis/4x4/Const/const" and values.ndim == 4:
        new_name, values = "synthesis.b4.const", values[0]
    elif (match := re.fullmatch(r"synthesis/noise(\d{1,2})", name)) and values.ndim == 4:
        index = int(match[1])
        new_name = f"synthesis.b{1 << (index + 5) // 2}.conv{0 if index % 2 else 1}.noise_const"
        values = values[0, 0]
    elif match := re.fullmatch(r"synthesis/(\d{1,5})x\1/(Conv|Conv0_up|Conv1|ToRGB)/(\w+)", name):
        new_name = f"synthesis.b{match[1]}.{_LAYERS[match[2]]}.{_PARTS.get(match[3], match[3])}"
        values = _layer_values(match[2], match[3], values)
    return new_name, torch.from_numpy(np.array(values, dtype=np.float32, order="C"))


def _layer_values(layer: str, part: str, values: Array) -> Array:
    if part == "weight" and values.ndim == 4:
        if layer == "Conv0_up":  # stored for a transposed convolution
            values = values[::-1, ::-1]
        return values.transpose(3, 2, 0, 1)  # [k, k, in, out] -> [out, in, k, k]
    if part == "mod_weight":
        return values.T
    if part == "mod_bias":
        return np.add(values, 1, dtype=np.float32)
    return values


def _init_kwargs(options: Mapping[str, Any]) -> dict[str, Any]:
    """TensorFlow's options as NVlabs' PyTorch code would have stored them; unknown ones stay, to be noted."""
    mapping: dict[str, Any] = {}
    synthesis: dict[str, Any] = {}
    result: dict[str, Any] = {"mapping_kwargs": mapping, "synthesis_kwargs": synthesis}
    tables = ((_NETWORK_OPTIONS, result), (_MAPPING_OPTIONS, mapping), (_SYNTHESIS_OPTIONS, synthesis))
    for name, value in options.items():
        if name in _IGNORED_OPTIONS or value is None:
            continue
        table, target = next((pair for pair in tables if name in pair[0]), ({}, synthesis))
        target[table.get(name, str(name))] = value
    return result
