"""MTCNN's published weights, from the package facenet-pytorch into the files that `domain: face` wants."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lsap_core.generators.checkpoints import read_torch
from tests.rehearsal.filled import tables

FLATTENED = {"rnet": {"dense4": 64}, "onet": {"dense5": 128}}
"""Linear layers that read a flattened map, and its channels: first there, last in the package."""


def write_detector(wheel: Path, folder: Path) -> None:
    """pnet.npy, rnet.npy and onet.npy."""
    with zipfile.ZipFile(wheel) as files:
        for net in ("pnet", "rnet", "onet"):
            tensors: dict[str, Tensor] = read_torch(files.read(f"facenet_pytorch/data/{net}.pt"))
            arrays: Any = {}
            for name, tensor in tensors.items():
                layer, kind = name.split(".")
                if kind == "weight" and layer in FLATTENED.get(net, {}):
                    tensor = _channels_first(tensor, FLATTENED[net][layer])
                published = name.replace("dense", "conv")
                if f"features.{published}" in tables("mtcnn")[net]:
                    published = f"features.{published}"
                arrays[published] = tensor.numpy()
            file = io.BytesIO()
            np.save(file, arrays)
            (folder / f"{net}.npy").write_bytes(file.getvalue())


def _channels_first(weight: Tensor, channels: int) -> Tensor:
    """Columns for maps [side, side, C] -> for [C, side, side]."""
    side = round((weight.shape[1] / channels) ** 0.5)
    return weight.unflatten(1, (side, side, channels)).permute(0, 3, 1, 2).flatten(1)
