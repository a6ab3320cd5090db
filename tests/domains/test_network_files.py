"""Small networks come back from their files as they were, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from domains.network_files import load_generator_file, load_network, save_generator, save_network
from lsap_core.errors import CheckpointError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator
from lsap_core.perceptual.features import FeatureNet, FeatureNetConfig
from lsap_core.perceptual.judge import JudgeNet
from tasks.weights.generators import load_generator

CONFIG = FeatureNetConfig(16, 3, channels=(8, 8), embedding_dim=5, num_classes=4)
GENERATOR = GeneratorConfig(16, (3, 2, 2), z_dim=2, w_dim=3, num_mapping_layers=2, conv_clamp=256.0)


def build(kind: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = kind(CONFIG)
        network(torch.randn(4, 3, 16, 16))  # so that statistics of a batch normalization are not the first ones
    return network.eval()


@pytest.mark.parametrize("kind", [FeatureNet, JudgeNet])
def test_a_network_comes_back_as_it_was(tmp_path: Path, kind: type[FeatureNet] | type[JudgeNet]) -> None:
    network = build(kind)
    save_network(tmp_path / "net.safetensors", network)
    loaded = load_network(tmp_path / "net.safetensors", kind)
    assert type(loaded) is kind and loaded.config == CONFIG
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loaded(images), network(images))
    torch.testing.assert_close(loaded.taps(images), network.taps(images))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize(("written", "wanted"), [(FeatureNet, JudgeNet), (JudgeNet, FeatureNet)])
def test_another_kind_is_refused(tmp_path: Path, written: type[nn.Module], wanted: type[FeatureNet]) -> None:
    path = tmp_path / "net.safetensors"
    save_network(path, build(written))
    with pytest.raises(CheckpointError, match=f"holds a {written.__name__}; wanted a {wanted.__name__}"):
        load_network(path, wanted)


def test_a_generator_is_no_network(tmp_path: Path) -> None:
    save_generator(tmp_path / "g.safetensors", Generator(GENERATOR))
    with pytest.raises(CheckpointError, match="holds a Generator; wanted a FeatureNet"):
        load_network(tmp_path / "g.safetensors", FeatureNet)


@pytest.mark.parametrize("data", [None, b"", b"half a download", b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused_by_its_path(tmp_path: Path, data: bytes | None) -> None:
    path = tmp_path / "net.safetensors"
    if data is not None:
        path.write_bytes(data)
    for load in (lambda: load_network(path, FeatureNet), lambda: load_generator_file(path)):
        with pytest.raises(CheckpointError, match=f"{path.name} is not a readable safetensors file"):
            load()


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_network(path, build(FeatureNet))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="not a readable"):
        load_network(path, FeatureNet)


def test_a_file_without_metadata_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match="holds a file without a kind; wanted a FeatureNet"):
        load_network(tmp_path / "net.safetensors", FeatureNet)


@pytest.mark.parametrize(
    "config",
    [
        json.dumps({**CONFIG.to_dict(), "embedding_dim": 6}),
        json.dumps({**CONFIG.to_dict(), "depth": 2}),
        json.dumps({"resolution": 16}),
        "not JSON",
        None,
    ],
)
def test_sizes_that_do_not_fit_the_weights_are_refused(tmp_path: Path, config: str | None) -> None:
    path = tmp_path / "net.safetensors"
    save_network(path, build(FeatureNet))
    metadata = {"kind": "FeatureNet"} | ({} if config is None else {"config": config})
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(CheckpointError, match=f"{path.name} does not fit the sizes it names"):
        load_network(path, FeatureNet)


@torch.no_grad()
def test_a_generator_comes_back_as_it_was_also_for_a_run(tmp_path: Path) -> None:
    generator = Generator(GENERATOR)
    path = tmp_path / "g.safetensors"
    save_generator(path, generator)
    codes = torch.randn(2, GENERATOR.num_ws, GENERATOR.w_dim)
    run = load_generator(str(path))
    for loaded in (load_generator_file(path), run.generator):
        assert loaded.config == GENERATOR and not loaded.training
        torch.testing.assert_close(loaded.synthesize(codes), generator.synthesize(codes))
    assert run.format == "safetensors"


def test_a_network_is_no_generator(tmp_path: Path) -> None:
    save_network(tmp_path / "net.safetensors", build(JudgeNet))
    with pytest.raises(CheckpointError, match="name JudgeNet; wanted a Generator"):
        load_generator_file(tmp_path / "net.safetensors")
