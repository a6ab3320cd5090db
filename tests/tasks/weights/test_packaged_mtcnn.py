"""MTCNN's weights out of the package mtcnn: the published numbers, read without running or importing it."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path

import pytest

from lsap_core.errors import CheckpointError, MissingWeightsError
from lsap_core.perceptual.face_detection import DetectorSettings
from tasks.weights.packaged_mtcnn import load_available_detector, read_packaged
from tasks.weights.published import Published

PUBLISHED = {
    "pnet": "bbf6559ed90759c57c8c77df4a6574bb83a4b6cbd7213b8b6d61d6454155849b",
    "rnet": "8818a6db6dd6dd79b660dee0d292d5591d1fd2221e3ef639fd5c0129a8e2fb7d",
    "onet": "fbd9a487afb28263e11f7f383b57c5da09876e53b88bc6e142a5f70c99f454bc",
}
"""SHA-256 of names and numbers in the published pnet.npy, rnet.npy and onet.npy, in the order of the names."""


@pytest.fixture(scope="module")
def folder() -> Path:
    found = importlib.util.find_spec("mtcnn")
    if found is None or importlib.util.find_spec("lz4") is None:
        pytest.skip("the packages mtcnn and lz4 are not installed: make test")
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / "assets" / "weights"


@pytest.mark.parametrize("net", list(PUBLISHED))
def test_the_package_has_the_published_numbers(net: str, folder: Path) -> None:
    tensors = read_packaged(folder / f"{net}.lz4", net)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    assert digest.hexdigest() == PUBLISHED[net]


def test_without_files_the_package_is_taken_and_not_imported(folder: Path, tmp_path: Path) -> None:
    detector, source = load_available_detector(Published(str(tmp_path)), DetectorSettings(min_face=40))
    assert source.startswith("MTCNN of the package mtcnn 1.") and detector.settings.min_face == 40
    assert not any(parameter.requires_grad for parameter in detector.parameters())
    assert "mtcnn" not in sys.modules


def test_without_both_what_to_install_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mtcnn", None)  # as if it were not there
    with pytest.raises(MissingWeightsError, match=r"needs pnet\.npy, .*LSAP_BACKBONES; or pip install 'lsap\[faces\]'"):
        load_available_detector(Published(str(tmp_path)), DetectorSettings())


def test_other_files_are_refused(folder: Path, tmp_path: Path) -> None:
    import lz4.frame

    whole = lz4.frame.decompress((folder / "pnet.lz4").read_bytes())
    path = tmp_path / "pnet.lz4"
    others = [whole[:-1], whole[:9000], whole + b"x", b"", whole[:2], b"\x80\x02" + whole[2:]]
    others.append(whole[:3] + (2**62).to_bytes(8, "little") + whole[11:])  # a frame larger than the file
    for other in others:
        path.write_bytes(lz4.frame.compress(other))
        with pytest.raises(CheckpointError, match=r"pnet\.lz4 is not laid out as in mtcnn 1\.0: pip install"):
            read_packaged(path, "pnet")
    with pytest.raises(CheckpointError, match="not laid out"):
        read_packaged(folder / "onet.lz4", "pnet")
    path.write_bytes(b"no LZ4")
    with pytest.raises(CheckpointError, match=r"pnet\.lz4 is damaged"):
        read_packaged(path, "pnet")
    with pytest.raises(MissingWeightsError, match=r"none\.lz4 cannot be read"):
        read_packaged(tmp_path / "none.lz4", "pnet")
