"""MTCNN's published weights as the package mtcnn brings them along, read without running anything of it.

Its files are lists of arrays as joblib dumps them, compressed by LZ4: frames of a pickle, with the numbers of each
array after the frame that tells of it. The frames are passed over; sizes and order of the numbers are the networks'.
"""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsap_core.errors import CheckpointError, MissingWeightsError
from lsap_core.perceptual.face_detection import DetectorSettings, FaceDetector, build_face_detector
from tasks.weights.faces import DETECTOR_FILES, find_face_files, load_face_detector
from tasks.weights.published import Published

PACKAGE = "mtcnn"
_PROTOCOL, _FRAME, _END = b"\x80\x04", b"\x95", b"e."

Layer = tuple[str, tuple[int, ...]]
"""The name of a layer in the published files, and the shape of its weights in the package's: [H, W, in, out], or
[in, out]; [out] are the slopes of a PReLU, which has no bias."""
_LAYERS: dict[str, tuple[Layer, ...]] = {
    "pnet": (
        ("features.conv1", (3, 3, 3, 10)),
        ("features.prelu1", (10,)),
        ("features.conv2", (3, 3, 10, 16)),
        ("features.prelu2", (16,)),
        ("features.conv3", (3, 3, 16, 32)),
        ("features.prelu3", (32,)),
        ("conv4_2", (1, 1, 32, 4)),
        ("conv4_1", (1, 1, 32, 2)),
    ),
    "rnet": (
        ("features.conv1", (3, 3, 3, 28)),
        ("features.prelu1", (28,)),
        ("features.conv2", (3, 3, 28, 48)),
        ("features.prelu2", (48,)),
        ("features.conv3", (2, 2, 48, 64)),
        ("features.prelu3", (64,)),
        ("features.conv4", (576, 128)),
        ("features.prelu4", (128,)),
        ("conv5_2", (128, 4)),
        ("conv5_1", (128, 2)),
    ),
    "onet": (
        ("features.conv1", (3, 3, 3, 32)),
        ("features.prelu1", (32,)),
        ("features.conv2", (3, 3, 32, 64)),
        ("features.prelu2", (64,)),
        ("features.conv3", (3, 3, 64, 64)),
        ("features.prelu3", (64,)),
        ("features.conv4", (2, 2, 64, 128)),
        ("features.prelu4", (128,)),
        ("features.conv5", (1152, 256)),
        ("features.prelu5", (256,)),
        ("conv6_2", (256, 4)),
        ("conv6_3", (256, 10)),
        ("conv6_1", (256, 2)),
    ),
}
_AFTER_A_MAP = {576: (3, 3, 64), 1152: (3, 3, 128)}
"""[W, H, C] of the maps that linear layers read, by how many numbers they are."""


def load_available_detector(published: Published, settings: DetectorSettings) -> tuple[FaceDetector, str]:
    """MTCNN, frozen, on the CPU, and where its weights come from: the folder of published files, else the package.

    Args:
        published: where published networks lie.
        settings: how boldly it finds faces.

    Raises:
        MissingWeightsError: neither has them; the message says how to get them.
        CheckpointError: a file holds something else.
    """
    try:
        find_face_files(published, DETECTOR_FILES, what="the face detector (MTCNN)")
    except MissingWeightsError as error:
        folder = packaged_folder()
        if folder is None:
            raise MissingWeightsError(f"{error}; or pip install 'lsap[faces]', which brings them along") from None
        proposal, refinement, output = (read_packaged(folder / f"{net}.lz4", net) for net in _LAYERS)
        detector = build_face_detector(proposal, refinement, output, settings=settings)
        return detector, f"MTCNN of the package {PACKAGE} {metadata.version(PACKAGE)}"
    return load_face_detector(published, settings), "MTCNN"


def read_packaged(path: Path, net: str) -> dict[str, Tensor]:
    """Tensors by their published names from a file of the package.

    Args:
        path: such as mtcnn/assets/weights/pnet.lz4.
        net: "pnet", "rnet" or "onet".

    Raises:
        CheckpointError: it holds something else.
        MissingWeightsError: it is not there, or the package lz4, which unpacks it, is not installed.
    """
    try:
        import lz4.frame

        data = lz4.frame.decompress(path.read_bytes())
    except (ImportError, FileNotFoundError) as error:
        raise MissingWeightsError(f"{path} cannot be read ({error}): pip install 'lsap[faces]' again") from error
    except RuntimeError as error:
        raise CheckpointError(f"{path} is damaged ({error}): pip install 'lsap[faces]' again") from error
    arrays = _Arrays(path, data)
    tensors: dict[str, Tensor] = {}
    for layer, shape in _LAYERS[net]:
        tensors[f"{layer}.weight"] = _as_published(arrays.next(shape))
        if len(shape) > 1:
            tensors[f"{layer}.bias"] = torch.from_numpy(arrays.next(shape[-1:]))
    arrays.must_end()
    return tensors


def _as_published(weights: NDArray[np.float32]) -> Tensor:
    """[H, W, in, out] -> [out, in, H, W]; [in, out] -> [out, in], of a map [W H C, out] -> [out, C W H]."""
    if weights.ndim == 2 and len(weights) in _AFTER_A_MAP:
        flat = weights.reshape(*_AFTER_A_MAP[len(weights)], -1).transpose(3, 2, 0, 1)
        weights = flat.reshape(len(flat), -1)
    elif weights.ndim == 2:
        weights = weights.T
    elif weights.ndim == 4:
        weights = weights.transpose(3, 2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(weights))


class _Arrays:
    """The arrays of a dump, one after the other."""

    def __init__(self, path: Path, data: bytes) -> None:
        self._path, self._data, self._place = path, data, len(_PROTOCOL)
        if data[: self._place] != _PROTOCOL:
            raise self._problem()

    def next(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The array of this shape that comes next."""
        start = self._place
        if self._data[start : start + 1] != _FRAME:
            raise self._problem()
        padding = start + 9 + int.from_bytes(self._data[start + 1 : start + 9], "little")
        count = int(np.prod(shape))
        first = padding + 1 + (self._data[padding] if padding < len(self._data) else 0)
        if first + 4 * count > len(self._data):
            raise self._problem()
        self._place = first + 4 * count
        return np.frombuffer(self._data, "<f4", count, first).reshape(shape).astype(np.float32)

    def must_end(self) -> None:
        """Make sure that nothing is left."""
        if self._data[self._place :] != _END:
            raise self._problem()

    def _problem(self) -> CheckpointError:
        return CheckpointError(
            f"{self._path} is not laid out as in {PACKAGE} 1.0: pip install 'lsap[faces]' again, or put "
            f"{', '.join(DETECTOR_FILES)} into the folder that LSAP_BACKBONES names"
        )


def packaged_folder() -> Path | None:
    """Where the package keeps its weights; None where it is not installed. It is not imported: it wants TensorFlow."""
    found = importlib.util.find_spec(PACKAGE)
    places = found.submodule_search_locations if found is not None else None
    return Path(places[0]) / "assets" / "weights" if places else None
