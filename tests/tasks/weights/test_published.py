"""Published files lie in a folder of this machine, or are fetched once from one on object storage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from lsap_archive import ArchiveMismatchError
from lsap_core.errors import CheckpointError, MissingWeightsError
from tasks.weights.networks import find_weights, network_digest
from tasks.weights.published import TORCH_CACHE, Published

TRUNK = "alexnet-owt-7be5be79.pth"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A place in memory that stands for a bucket, and an empty cache of torch."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


def test_a_local_folder_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"weights")
    for folder in (str(tmp_path), f"{tmp_path}/", f"file://{tmp_path}"):
        assert Published(folder).find("x.pth") == tmp_path / "x.pth"
        assert Published(folder).find("y.pth") is None


def test_a_file_is_fetched_once_and_again_when_it_has_changed(bucket: Any, tmp_path: Path) -> None:
    url = "memory://networks"
    assert Published(url).find("x.pth") is None
    bucket.pipe_file("/networks/x.pth", b"weights")
    first = Published(url).find("x.pth")
    assert first is not None and first.read_bytes() == b"weights" and first.name == "x.pth"
    assert first.is_relative_to(tmp_path / "torch")
    first.write_bytes(b"not fetched a second time")
    assert Published(url).find("x.pth") == first
    bucket.pipe_file("/networks/x.pth", b"others!")
    then = Published(url).find("x.pth")
    assert then is not None and then.read_bytes() == b"others!"
    assert sorted(path.name for path in first.parent.iterdir()) == ["x.pth"]  # nothing half-written is left


def test_networks_are_found_by_url_and_missing_ones_named_with_it(bucket: Any) -> None:
    with pytest.raises(MissingWeightsError, match=r"alexnet.* is not in memory://networks"):
        find_weights("lpips-alex", Published("memory://networks"))
    bucket.pipe_file(f"/networks/{TRUNK}", b"weights")
    with pytest.raises(CheckpointError, match=rf"memory://networks/{TRUNK} has SHA-256 9a129038"):
        find_weights("lpips-alex", Published("memory://networks"))
    found = find_weights("lpips-alex", Published("memory://networks", takes_others=True))
    assert found.read_bytes() == b"weights"
    folders = ("memory://networks", str(found.parent))
    digests = [network_digest("lpips-alex", Published(folder, takes_others=True)) for folder in folders]
    assert digests[0] == digests[1]


def test_the_place_is_told_without_looking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert Published("s3://bucket/networks/").place("x.pth") == "s3://bucket/networks/x.pth"
    assert TORCH_CACHE.place("x.pth") == str(tmp_path / "hub" / "checkpoints" / "x.pth")
    assert str(Published()) == str(tmp_path / "hub" / "checkpoints")


def test_a_folder_with_a_password_is_refused() -> None:
    with pytest.raises(ArchiveMismatchError, match="carries a password") as caught:
        Published("s3://AKIA:hunter2@bucket/networks").find("x.pth")
    assert "hunter2" not in str(caught.value)
