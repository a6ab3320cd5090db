"""Generators as the TensorFlow programs of NVlabs pickled them, without TensorFlow."""

from __future__ import annotations

import pickle
import sys
import types
from typing import Any

import numpy as np
import pytest

from lsap_core.generators.checkpoints import CanonicalCheckpoint
from lsap_core.generators.checkpoints.nvlabs import nvlabs_name


class EasyDict(dict):  # type: ignore[type-arg]
    """As dnnlib's: a dictionary pickled by the name dnnlib.util.EasyDict."""


class Network:
    """As dnnlib.tflib.network.Network: pickled by its attributes."""

    def __init__(self, **state: Any):
        self.state = state

    def __getstate__(self) -> dict[str, Any]:
        return self.state


def tensorflow_network(checkpoint: CanonicalCheckpoint, *, version: int = 4, **options: Any) -> Network:
    """The network as TensorFlow stores it: HWIO weights, up-sampling ones flipped, style biases minus one."""
    variables: dict[str, dict[str, Any]] = {"": {"lod": np.float32(0)}, "mapping": {}, "synthesis": {}}
    layers = {"conv0": "Conv0_up", "conv1": "Conv1", "torgb": "ToRGB"}
    for name, tensor in checkpoint.state.items():
        room, *path, leaf = nvlabs_name(name).split(".")
        values = tensor.detach().numpy()
        if leaf == "w_avg":
            variables[""]["dlatent_avg"] = values
        elif room == "mapping":
            variables[room][f"Dense{path[0][2:]}/{leaf}"] = values.T
        elif leaf == "const":
            variables[room]["4x4/Const/const"] = values[None]
        elif leaf == "noise_const":
            variables[room][f"noise{name.split('.')[2]}"] = values[None, None]
        else:
            side, layer = path[0][1:], "Conv" if path[:2] == ["b4", "conv1"] else layers[path[1]]
            if path[-1] == "affine":
                leaf, values = f"mod_{leaf}", values.T if leaf == "weight" else values - np.float32(1)
            elif leaf == "weight":
                values = values.transpose(2, 3, 1, 0)
                values = values[::-1, ::-1] if layer == "Conv0_up" else values
            elif leaf == "noise_strength":
                values = np.float32(values)
            variables[room][f"{side}x{side}/{layer}/{leaf}"] = values
    sizes = checkpoint.config
    told = {
        "resolution": sizes.resolution,
        "latent_size": sizes.z_dim,
        "dlatent_size": sizes.w_dim,
        "mapping_layers": sizes.num_mapping_layers,
    }
    parts = {
        room: Network(version=version, components={}, variables=list(variables[room].items()))
        for room in ("mapping", "synthesis")
    }
    return Network(
        version=version,
        name="Gs",
        static_kwargs=EasyDict(told | options),
        components=parts,
        build_module_src="raise SystemExit",
        variables=list(variables[""].items()),
    )


def pickled_tensorflow(networks: object) -> bytes:
    """The pickle of networks, under the names that their classes have in NVlabs' code."""
    members = {"dnnlib": None, "dnnlib.util": EasyDict, "dnnlib.tflib": None, "dnnlib.tflib.network": Network}
    with pytest.MonkeyPatch.context() as patch:
        for name, member in members.items():
            module = types.ModuleType(name)
            patch.setitem(sys.modules, name, module)
            if member is not None:
                setattr(module, member.__name__, member)
                patch.setattr(member, "__module__", name)
        return pickle.dumps(networks, 4)
