"""An anchor is estimated once, kept under a name that tells all its parts, and read back as it was."""

from __future__ import annotations

import uuid
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import nn

from lsap_archive import ArchiveNotFoundError, ArchiveWriter, Geometry
from lsap_archive.reading.style_layers import read_style_layers
from lsap_core.alignment.anchor import EVALUATION_SAMPLES, estimate_anchor
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator
from lsap_core.spaces.styles import normalize, select
from tasks.archived.anchors import AnchorOptions, keep_anchor, open_anchor

CONFIG = GeneratorConfig(16, (4, 3, 2), z_dim=4, w_dim=5, num_mapping_layers=2)
OPTIONS = AnchorOptions(num_samples=32)


@pytest.fixture
def generator() -> Generator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Generator(CONFIG)


@pytest.fixture
def archive() -> ArchiveWriter:
    return ArchiveWriter.open(
        f"memory://test-{uuid.uuid4().hex}",
        generator_digest="g",
        generator_name="tiny",
        geometry=Geometry(CONFIG.num_ws, CONFIG.w_dim, CONFIG.noise_sizes),
    )


def contents(archive: ArchiveWriter) -> dict[str, bytes]:
    return {key: archive.store.get(key) for key in archive.store.sizes()}


@pytest.mark.parametrize("style_set", ["authors", "conv", "full"])
def test_a_kept_anchor_reads_back_as_it_was_estimated(
    archive: ArchiveWriter, generator: Generator, style_set: str
) -> None:
    options = replace(OPTIONS, style_set=style_set, seed=4)
    digest = keep_anchor(archive, generator, "g", options)
    wanted = estimate_anchor(generator, num_samples=32, style_set=style_set, seed=4)
    found = open_anchor(archive.store.url, digest)
    assert (found.code_deviation, found.style_set, found.num_samples) == (wanted.code_deviation, style_set, 32)
    torch.testing.assert_close(found.w_avg, wanted.w_avg, atol=0, rtol=0)
    torch.testing.assert_close(list(found.directions), list(wanted.directions), atol=0, rtol=0)
    assert {each.dtype for each in found.directions} == {torch.float32}


def test_readers_know_s_n_as_the_generator_does(archive: ArchiveWriter, generator: Generator) -> None:
    """In float32: what the archive keeps of the affine layers gives the directions that SNCD is made of."""
    keep_anchor(archive, generator, "g", OPTIONS)
    name, layers = read_style_layers(archive.store, archive.generator, archive.geometry)
    codes = torch.randn(6, CONFIG.num_ws, CONFIG.w_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = torch.cat(normalize(select(generator.styles(codes), CONFIG, "authors")), dim=1)
    torch.testing.assert_close(torch.from_numpy(layers.directions(codes.numpy())), wanted, atol=1e-6, rtol=1e-6)
    before = contents(archive)
    keep_anchor(archive, generator, "g", OPTIONS)
    assert contents(archive) == before and f"styles/{name}.npz" in before


def test_an_anchor_is_estimated_once(archive: ArchiveWriter, generator: Generator) -> None:
    digest = keep_anchor(archive, generator, "g", OPTIONS)
    before = contents(archive)
    assert keep_anchor(archive, nn.Identity(), "g", OPTIONS) == digest  # nothing that codes could be drawn from
    assert contents(archive) == before


def test_everything_that_decides_an_anchor_is_in_its_name() -> None:
    others = {"num_samples": 33, "style_set": "conv", "seed": 1}
    assert others.keys() == {option.name for option in fields(AnchorOptions)}
    digests = [OPTIONS.digest("g"), OPTIONS.digest("h")]
    digests += [replace(OPTIONS, **{name: value}).digest("g") for name, value in others.items()]
    assert len(set(digests)) == 5
    assert OPTIONS.digest("g") == AnchorOptions(num_samples=32).digest("g")


def test_by_default_as_many_codes_are_sampled_as_the_paper_evaluates_with() -> None:
    assert AnchorOptions().num_samples == EVALUATION_SAMPLES == 50_000


def test_an_anchor_that_is_not_there_is_told_by_its_place(archive: ArchiveWriter) -> None:
    with pytest.raises(ArchiveNotFoundError, match=r"anchors/nobody\.npz"):
        open_anchor(archive.store.url, "nobody")


def test_nothing_is_unpickled(archive: ArchiveWriter, tmp_path: object) -> None:
    path = f"{tmp_path}/hostile.npz"
    np.savez(path, direction_00=np.array([{"any": "object"}], dtype=object))
    with open(path, "rb") as file:
        archive.put_anchor("hostile", file.read())
    with pytest.raises(ValueError, match="pickled objects are never loaded"):
        open_anchor(archive.store.url, "hostile")
