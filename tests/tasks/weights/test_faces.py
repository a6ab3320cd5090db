"""Published files of the networks that look at faces: read without running them, missing ones all named."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from lsap_core.errors import CheckpointError, MissingWeightsError
from lsap_core.perceptual.face_detection import DetectorSettings
from tasks.weights.faces import load_face_detector, load_face_identity, read_npy_weights
from tasks.weights.published import Published

REFERENCE = Path(__file__).parents[2] / "reference"


@pytest.fixture(scope="session")
def fill() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference_fill", REFERENCE / "fill.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def backbones(fill: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files as they are published, of numbers made from names."""
    folder = tmp_path_factory.mktemp("backbones")
    tables = json.loads((REFERENCE / "keys" / "mtcnn.json").read_text())
    for name in ("pnet", "rnet", "onet"):
        arrays = {key: t.numpy() for key, t in fill.fill_dict(tables[name], "plain", salt=f"{name}:").items()}
        np.save(folder / f"{name}.npy", arrays)  # type: ignore[arg-type]
    keys = json.loads((REFERENCE / "keys" / "curricularface_ir101.json").read_text())["keys"]
    torch.save(fill.fill_dict(keys, "plain"), folder / "CurricularFace_Backbone.pth")
    return folder


def test_files_as_published_make_networks_that_answer_as_published(backbones: Path) -> None:
    identity = load_face_identity(Published(backbones))
    numbers = np.load(REFERENCE / "mtcnn_nets.npz")
    crops = (torch.from_numpy(numbers["in.onet_crops"]).permute(0, 3, 1, 2).float() - 127.5) * 0.0078125
    with torch.no_grad():
        points, _, scores = identity.detector.output(crops)
    np.testing.assert_allclose(points, numbers["out.onet_landmarks"], atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(scores, numbers["out.onet_scores"], atol=5e-6, rtol=1e-5)
    assert not any(parameter.requires_grad for parameter in identity.parameters())


def test_settings_reach_the_detector(backbones: Path) -> None:
    detector = load_face_detector(Published(backbones), DetectorSettings(softmax="classes", min_face=40))
    assert detector.settings.min_face == 40 and detector.proposal.softmax_axis == 1


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_every_protocol_that_numpy_has_written_is_read(tmp_path: Path, protocol: int) -> None:
    arrays = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.asfortranarray(np.eye(3, 2))}
    save_as(tmp_path / "net.npy", arrays, protocol)
    tensors = read_npy_weights(tmp_path / "net.npy")
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        assert torch.equal(tensors[name], torch.from_numpy(array.astype(np.float32)))  # type: ignore[arg-type]


def save_as(path: Path, document: object, protocol: int) -> None:
    """`numpy.save` of an object, with the protocol of another version of NumPy."""
    import pickle

    array = np.empty((), dtype=object)
    array[()] = document
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        pickle.dump(array, file, protocol=protocol)


# --- refusals ---------------------------------------------------------------------------------------


def test_all_missing_files_are_named(backbones: Path, tmp_path: Path) -> None:
    with pytest.raises(
        MissingWeightsError, match=r"curricularface needs pnet.npy, rnet.npy, onet.npy, Curr.*LSAP_BACK"
    ):
        load_face_identity(Published(tmp_path))
    (tmp_path / "pnet.npy").write_bytes((backbones / "pnet.npy").read_bytes())
    with pytest.raises(MissingWeightsError, match=r"MTCNN\) needs rnet.npy, onet.npy, not found in"):
        load_face_detector(Published(tmp_path))


class Hostile:
    """What a file may ask of a reader that trusts it."""

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return os.mkdir, ("was_run",)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"weight": Hostile()}, "wants to use (posix|nt).mkdir"),
        (Hostile(), "wants to use (posix|nt).mkdir"),
        ({"weight": np.array([Hostile()])}, "wants to use (posix|nt).mkdir"),
        ({"weight": np.array([None, 1])}, "an array that is not made of plain numbers"),
        ({"weight": [1, 2]}, "something else than named arrays"),
        ([1, 2], "something else than named arrays"),
        ({1: np.zeros(2)}, "something else than named arrays"),
    ],
)
def test_hostile_and_other_dictionaries_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: object, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_as(tmp_path / "pnet.npy", document, 4)
    with pytest.raises(CheckpointError, match=message):
        read_npy_weights(tmp_path / "pnet.npy")
    assert not (tmp_path / "was_run").exists()


def test_other_files_are_refused(tmp_path: Path, backbones: Path) -> None:
    path = tmp_path / "pnet.npy"
    np.save(path, np.zeros((3, 4)))
    with pytest.raises(
        CheckpointError, match=r"pnet.npy holds an array \[3, 4\] of float64; wanted a .npy file with one"
    ):
        read_npy_weights(path)
    path.write_bytes(b"GIF89a")
    with pytest.raises(CheckpointError, match=r"pnet.npy is not a .npy file with one dictionary of arrays"):
        read_npy_weights(path)
    path.write_bytes((backbones / "pnet.npy").read_bytes()[:-500])
    with pytest.raises(CheckpointError, match="truncated"):
        read_npy_weights(path)
    for name in ("pnet.npy", "rnet.npy", "onet.npy"):
        (tmp_path / name).write_bytes((backbones / name).read_bytes())
    torch.save({"a": torch.zeros(1)}, tmp_path / "CurricularFace_Backbone.pth")
    with pytest.raises(CheckpointError, match=r"CurricularFace_Backbone.pth: wanted CurricularFace.*found 1 entries"):
        load_face_identity(Published(tmp_path))
