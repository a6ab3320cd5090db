"""xarray opens runs: those of this version by itself, those of any by `Archive.dataset`, with the same names."""

from __future__ import annotations

import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr

from lsap_archive import ArchiveKeyError, ArchiveMismatchError, CorruptArchiveError, RunWriter, open_archive
from lsap_archive.writing.publication import Publication

ARCHIVES = Path(__file__).parents[1]


@pytest.fixture
def url(local_place: Any, published: Callable[[Any], RunWriter]) -> str:
    """run-1 of five images, two a shard, with two sizes of noise maps and a trace."""
    published(local_place)
    found: str = local_place.url
    return found


@pytest.mark.parametrize("consolidated", [None, True])
def test_plain_xarray_opens_a_run_without_a_warning(url: str, work: Any, consolidated: bool | None) -> None:
    run = RunWriter.open(url, "run-1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = xarray.open_zarr(f"{url}/runs/run-1", consolidated=consolidated, chunks=None)
        ids = [str(one) for one in found.image_id.values]
    assert dict(found.sizes) == {
        "image": 5, "layer": 2, "channel": 3, "y_4": 4, "x_4": 4, "y_8": 8, "x_8": 8, "step": 2, "term": 3,
    }  # fmt: skip
    assert set(found.coords) == {"image_id", "step", "term"} and found.image_id.dims == ("image",)
    assert ids == [f"image-{row}" for row in range(5)]
    np.testing.assert_array_equal(found.noise_01.values, work.expected(run, "noise_01"))
    one = found.set_xindex("image_id").trace.sel(image_id="image-3", step=10, term="sncd")
    assert float(one) == work.expected(run, "trace")[3, 1, 2]


def test_the_archive_gives_the_same_dataset(url: str) -> None:
    plain = xarray.open_zarr(f"{url}/runs/run-1", chunks=None)
    xarray.testing.assert_identical(open_archive(url).dataset("run-1").load(), plain.load())


def test_any_part_is_read_and_nothing_else(url: str) -> None:
    found, whole = open_archive(url).dataset("run-1"), open_archive(url).dataset("run-1").load()
    Path(url, "runs/run-1/w_plus/c/1/0/0").unlink()
    parts: list[dict[str, Any]] = [
        {"image": 4},
        {"image": [4, 0, 4]},
        {"image": slice(None, None, 4), "layer": 1},
        {"image": 0, "channel": [2, 0]},
        {"image": [], "layer": slice(1, None)},
    ]
    for part in parts:
        xarray.testing.assert_identical(found.w_plus.isel(part).load(), whole.w_plus.isel(part))
    with pytest.raises(CorruptArchiveError, match="w_plus/c/1/0/0 is missing"):
        found.w_plus.isel(image=2).load()


def test_retired_shards_are_empty_there(url: str) -> None:
    run = RunWriter.open(url, "run-1")
    Publication(run.store, type(run.manifest()), "run-1").retire(["for the test"], 1)
    found = open_archive(url).dataset("run-1").w_plus
    np.testing.assert_array_equal(np.isnan(found.values).all(axis=(1, 2)), [False, False, True, True, False])


@pytest.mark.parametrize(
    ("file", "run_id", "ids", "size"),
    [
        ("version_1.zip", "run-1", "image-0", {"y_4": 4, "x_8": 8, "term": 3}),
        ("version_2.zip", "run-1", "image-0", {"y_4": 4, "x_8": 8, "term": 3}),
        ("version_3.tar.xz", "lsap_o_w_plus-098876544e4eac8f", "0-zero.png", {"y_4": 4, "x_32": 32, "channel": 64}),
    ],
)
def test_runs_of_older_versions_open_with_the_same_names(
    tmp_path: Path, file: str, run_id: str, ids: str, size: dict[str, int]
) -> None:
    if file.endswith(".zip"):
        with zipfile.ZipFile(ARCHIVES / file) as archived:
            archived.extractall(tmp_path / "archive")
    else:
        with tarfile.open(ARCHIVES / file) as archived:
            archived.extractall(tmp_path, filter="data")
    archive = open_archive(str(tmp_path / "archive"))
    found = archive.dataset(run_id)
    assert size.items() <= dict(found.sizes).items() and str(found.image_id.values[0]) == ids
    method = found.attrs["method"]
    np.testing.assert_array_equal(found.w_plus[0].values, archive.codes([ids], method)[0])
    np.testing.assert_array_equal(found.noise_01[0].values, archive.noise([ids], method)[1][0])
    assert found.trace.sel(step=0).dims == ("image", "term")


def test_what_is_not_there_is_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = open_archive(url)
    with pytest.raises(ArchiveKeyError, match="no published run run-2: it has run-1"):
        archive.dataset("run-2")
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ArchiveMismatchError, match=r"pip install 'lsap-archive\[xarray\]'"):
        archive.dataset("run-1")


def test_plain_zarr_reads_the_consolidated_group(url: str) -> None:
    group = zarr.open_group(f"{url}/runs/run-1", mode="r", zarr_format=3, use_consolidated=True)
    assert group.metadata.consolidated_metadata is not None
    assert group["image_id"][2] == "image-2" and list(group["step"][:]) == [0, 10]
