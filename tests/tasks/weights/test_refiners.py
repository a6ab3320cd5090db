"""Files of networks of refiners: released ones and our own, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from lsap_core.errors import CheckpointError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.refinement.hyperstyle_checkpoint import HYPERSTYLE
from lsap_core.refinement.hyperstyle_networks import HyperStyleConfig
from lsap_core.refinement.network_files import NetworkCheckpoint
from lsap_core.refinement.sam_checkpoints import PREDICTOR
from lsap_core.refinement.sam_networks import InvertibilityPredictor, PredictorConfig, SamNetworks
from lsap_core.refinement.sfe_checkpoints import SFE
from lsap_core.refinement.sfe_networks import SfeConfig
from tasks.weights.refiners import encode_networks, load_refiner_networks

CONFIG = GeneratorConfig.config_f(32)


def test_a_released_predictor_becomes_the_networks_of_sam(tmp_path: Path) -> None:
    document: dict[str, dict[str, Tensor]] = {}
    for name, shape in PREDICTOR.shapes(PredictorConfig("deeplab", ("W+", "F4"))).items():
        entry, rest = name.removeprefix("heads.").split(".", 1)
        document.setdefault("sd_base" if entry == "base" else entry, {})[rest] = torch.zeros(shape)
    torch.save(document, tmp_path / "released.pt")
    loaded = load_refiner_networks(str(tmp_path / "released.pt"), CONFIG)
    assert (loaded.kind, loaded.generator_digest, loaded.encoder_digest, loaded.notes) == ("sam", None, None, ())
    assert isinstance(loaded.networks, SamNetworks) and loaded.networks.segmenter is None
    assert loaded.networks.predictor.spaces == ("W+", "F4") and not loaded.networks.predictor.training
    assert not any(parameter.requires_grad for parameter in loaded.networks.parameters())


def test_our_own_file_says_whose_spaces_a_predictor_knows(tmp_path: Path) -> None:
    config = PredictorConfig("small", ("W+", "F2"), image_channels=1)
    state = PREDICTOR.canonical(config, InvertibilityPredictor(config).state_dict(), what="the test")
    checkpoint = NetworkCheckpoint(config, state, "safetensors", generator_digest="0123")
    path = tmp_path / "own.safetensors"
    path.write_bytes(safetensors.torch.save(state, PREDICTOR.metadata(checkpoint)))
    loaded = load_refiner_networks(str(path), CONFIG)
    assert (loaded.kind, loaded.digest, loaded.generator_digest) == ("sam", PREDICTOR.digest(checkpoint), "0123")
    assert isinstance(loaded.networks, SamNetworks) and loaded.networks.predictor.config == config


NARROW = GeneratorConfig(32, (16, 16, 8, 8))


def released_hyperstyle(name: str) -> str:
    """The published name of a tensor of a hypernetwork that changes layer 9 alone."""
    name = name.replace("heads.9.output.", "refinement_blocks.9.output.1.").replace("heads.", "refinement_blocks.")
    return f"hypernet.{name.removeprefix('backbone.')}"


def released_inverter(name: str) -> str:
    """The published name of a tensor in a file of the first phase."""
    return f"encoder.{name.removeprefix('inverter.')}"


@pytest.mark.parametrize(
    ("form", "config", "published"),
    [
        (HYPERSTYLE, HyperStyleConfig(NARROW, (9,), "resnet_34", (256, 256)), released_hyperstyle),
        (SFE, SfeConfig("iresnet_50", 2, 8, 3, 256, 16, has_editor=False), released_inverter),
    ],
    ids=["hyperstyle", "sfe"],
)
def test_released_networks_have_the_digest_of_our_own_file_of_them(
    form: Any, config: Any, published: Callable[[str], str], tmp_path: Path
) -> None:
    shapes = {name: torch.Size(shape) for name, shape in form.shapes(config).items()}
    memory = torch.zeros(max(shape.numel() for shape in shapes.values()))  # one for all: the .pt has it once
    zeros = {name: memory[: shape.numel()].view(shape) for name, shape in shapes.items()}
    torch.save({"state_dict": {published(name): each for name, each in zeros.items()}}, tmp_path / "released.pt")
    released = load_refiner_networks(str(tmp_path / "released.pt"), NARROW)
    assert (released.kind, released.generator_digest, released.encoder_digest) == (form.kind, None, None)
    path = tmp_path / "own.safetensors"
    copies = {name: tensor.clone() for name, tensor in zeros.items()}
    path.write_bytes(encode_networks(form, config, copies, generator_digest="01", encoder_digest="23"))
    own = load_refiner_networks(str(path), NARROW)
    assert (own.kind, own.generator_digest, own.encoder_digest) == (form.kind, "01", "23")
    assert own.digest == released.digest
    for found in (own, released):
        assert found.networks.config == config and not found.networks.training
        assert not any(parameter.requires_grad for parameter in found.networks.parameters())


def test_other_files_are_refused_with_what_would_do(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(safetensors.torch.save({"weight": torch.zeros(1)}, {"kind": "something"}))
    with pytest.raises(CheckpointError, match=r'networks of kind "something"; wanted one of .*invertibility_predictor'):
        load_refiner_networks(str(path), CONFIG)
    torch.save({"sd_base": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"has sd_base and no space; wanted W\+, F4"):
        load_refiner_networks(str(tmp_path / "other.pt"), CONFIG)
