"""Files of networks of refiners: predictors of SAM, released and our own, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from lsap_core.errors import CheckpointError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.refinement.sam_checkpoints import (
    PredictorCheckpoint,
    canonical_predictor_state,
    predictor_shapes,
    to_predictor_metadata,
)
from lsap_core.refinement.sam_networks import InvertibilityPredictor, PredictorConfig, SamNetworks
from tasks.weights.refiners import load_refiner_networks

CONFIG = GeneratorConfig.config_f(32)


def test_a_released_predictor_becomes_the_networks_of_sam(tmp_path: Path) -> None:
    document: dict[str, dict[str, Tensor]] = {}
    for name, shape in predictor_shapes(PredictorConfig("deeplab", ("W+", "F4"))).items():
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
    state = canonical_predictor_state(config, InvertibilityPredictor(config).state_dict(), what="the test")
    checkpoint = PredictorCheckpoint(config, state, "safetensors", generator_digest="0123")
    path = tmp_path / "own.safetensors"
    path.write_bytes(safetensors.torch.save(state, to_predictor_metadata(checkpoint)))
    loaded = load_refiner_networks(str(path), CONFIG)
    assert (loaded.kind, loaded.digest, loaded.generator_digest) == ("sam", checkpoint.digest, "0123")
    assert isinstance(loaded.networks, SamNetworks) and loaded.networks.predictor.config == config


def test_other_files_are_refused_with_what_would_do(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(safetensors.torch.save({"weight": torch.zeros(1)}, {"kind": "something"}))
    with pytest.raises(CheckpointError, match=r'networks of kind "something"; wanted one of .*invertibility_predictor'):
        load_refiner_networks(str(path), CONFIG)
    torch.save({"sd_base": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"has sd_base and no space; wanted W\+, F4"):
        load_refiner_networks(str(tmp_path / "other.pt"), CONFIG)
