"""Files of StyleFeatureEditor's networks: released ones of both phases, and our own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lsap_core.errors import CheckpointError
from lsap_core.refinement.network_files import NetworkCheckpoint
from lsap_core.refinement.sfe_checkpoints import (
    SFE,
    from_sfe_document,
    is_sfe_document,
    load_sfe_backbone,
    sfe_discriminator,
)
from lsap_core.refinement.sfe_networks import SfeBackboneNetwork, SfeConfig, SfeNetworks

KEYS = Path(__file__).parents[2] / "reference" / "keys"
SMALL = SfeConfig("small", 8, 24, 3, input_side=32, feature_channels=16)

Table = Callable[..., dict[str, Tensor]]


@pytest.fixture(scope="module")
def table() -> Table:
    """Tensors of a published table of names: zeros, one memory for all of a shape."""
    zeros: dict[tuple[int, ...], Tensor] = {}

    def make(name: str, prefix: str) -> dict[str, Tensor]:
        tensors = {}
        for key, shape in json.loads((KEYS / f"{name}.json").read_text())["keys"].items():
            tensor = zeros.setdefault(tuple(shape), torch.zeros(shape))
            tensors[prefix + key] = tensor.long() if key.endswith("num_batches_tracked") else tensor
        return tensors

    return make


@pytest.fixture(scope="module")
def first_phase(table: Table) -> dict[str, Tensor]:
    return table("sfe_inverter", "encoder.")


@pytest.fixture(scope="module")
def second_phase(table: Table) -> dict[str, Tensor]:
    return table("sfe_inverter", "inverter.") | table("sfe_feature_editor", "encoder.")


@pytest.fixture(scope="module")
def small() -> NetworkCheckpoint[SfeConfig]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = SfeNetworks(SMALL).state_dict()
    return NetworkCheckpoint(
        SMALL, {name: tensor for name, tensor in state.items() if "num_batches" not in name}, "safetensors"
    )


def test_the_light_file_of_the_second_phase_has_inverter_and_editor(second_phase: dict[str, Tensor]) -> None:
    state = second_phase | {"encoder.conv.bias": torch.arange(512.0), "inverter.fuser.conv.bias": torch.ones(512)}
    assert is_sfe_document({"state_dict": state})
    checkpoint = from_sfe_document({"state_dict": state})
    assert checkpoint.config == SfeConfig("iresnet_50", 18, 512, 3, 256, 512)
    assert checkpoint.state.keys() == SFE.shapes(checkpoint.config).keys()
    assert torch.equal(checkpoint.state["editor.conv.bias"], torch.arange(512.0))
    assert torch.equal(checkpoint.state["inverter.fuser.conv.bias"], torch.ones(512))
    assert (checkpoint.layout, checkpoint.notes) == ("released", ())
    assert sfe_discriminator({"state_dict": state}) is None


def test_the_full_file_of_the_second_phase_brings_a_discriminator_and_more_that_is_left_alone(
    second_phase: dict[str, Tensor], table: Table
) -> None:
    state = second_phase | table("rosinality_generator_32", "decoder.") | table("w_encoder", "e4e_encoder.")
    state |= table("sfe_discriminator_1024", "discriminator.")
    file = {"state_dict": state, "latent_avg": torch.zeros(512), "encoder_opt": {}, "disc_opt": {}}
    checkpoint = from_sfe_document(file)
    assert checkpoint.config.has_editor
    assert checkpoint.notes == tuple(
        f"{name} is in the file too and was left alone" for name in ("decoder", "e4e_encoder")
    )
    for name in state:  # only its filters have numbers that must be right
        if name.endswith("resample_filter"):
            state[name] = torch.outer(*[torch.tensor([1.0, 3.0, 3.0, 1.0])] * 2) / 64
    discriminator = sfe_discriminator(file)
    assert discriminator is not None
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == 29_012_513


def test_encoder_is_the_inverter_in_files_of_the_first_phase(first_phase: dict[str, Tensor], table: Table) -> None:
    state = first_phase | table("rosinality_generator_32", "decoder.")
    checkpoint = from_sfe_document({"state_dict": state, "latent_avg": torch.zeros(512)})
    assert not checkpoint.config.has_editor
    assert all(name.startswith("inverter.") for name in checkpoint.state)
    assert SFE.build(checkpoint).editor is None


def test_cars_have_as_many_rows_as_heads(first_phase: dict[str, Tensor]) -> None:
    state = {name: tensor for name, tensor in first_phase.items() if ".styles.16." not in name}
    state = {name: tensor for name, tensor in state.items() if ".styles.17." not in name}
    assert from_sfe_document({"state_dict": state}).config.num_ws == 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.body.4.body.5.bias": None}, r"editor\.body\.4\.body\.5\.bias +missing"),
        ({"inverter.fuser.body.5.body.0.bias": torch.zeros(512)}, r"fuser\.body\.5\.body\.0\.bias +\[512\] +nothing"),
        ({"encoder.conv.weight": torch.zeros(512, 512, 1, 1)}, r"editor\.conv\.weight +\[512, 512, 1, 1\]"),
        ({"encoder.conv.bias": torch.full((512,), torch.nan)}, r"editor\.conv\.bias holds values that are not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    second_phase: dict[str, Tensor], change: dict[str, Tensor | None], message: str
) -> None:
    state = {name: tensor for name, tensor in {**second_phase, **change}.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=message):
        from_sfe_document({"state_dict": state})


@pytest.mark.parametrize(
    ("document", "found"),
    [
        ({"state_dict": {"encoder.input_layer.0.weight": 1, "decoder.conv1": 1}}, "the checkpoint of an encoder"),
        ({"state_dict": {"inverter.fs_backbone.conv.0.weight": 1}}, "1 entries"),
        ({"g_ema": {}}, "1 entries"),
        (3, "a single int"),
    ],
)
def test_other_files_are_refused_by_what_they_are(document: Any, found: str) -> None:
    with pytest.raises(CheckpointError, match=rf"wanted a checkpoint of StyleFeatureEditor.*found {found}"):
        from_sfe_document(document)


def test_the_backbone_starts_from_the_published_classifier(table: Table) -> None:
    config = SfeConfig("iresnet_50", 1, 8, 3, 256, 16)
    networks = SfeNetworks(config)
    state = table("iresnet50_arcface", "")
    state["bn1.running_var"] = torch.arange(64.0)
    state["layer3.13.conv2.weight"] = torch.full((256, 256, 3, 3), 2.0)
    before = networks.inverter.fuser.conv.weight.clone()
    load_sfe_backbone(networks, state)
    backbone = networks.inverter.fs_backbone
    assert isinstance(backbone, SfeBackboneNetwork)
    assert torch.equal(backbone.conv[1].running_var, torch.arange(64.0))
    assert bool((backbone.block_3[13].conv2.weight == 2).all())
    assert torch.equal(networks.inverter.fuser.conv.weight, before)
    del state["layer4.2.bn3.bias"]
    with pytest.raises(CheckpointError, match=r"the iresnet_50 backbone: 1 tensors[^$]*block_4\.2\.bn3\.bias +missing"):
        load_sfe_backbone(networks, state)
    with pytest.raises(CheckpointError, match=r"starts from iresnet50-7f187506\.pth"):
        load_sfe_backbone(networks, {"input_layer.0.weight": 1})
    with pytest.raises(CheckpointError, match='a "small" backbone has no trained weights'):
        load_sfe_backbone(SfeNetworks(SMALL), state)


def test_our_own_form_comes_back_as_it_was(small: NetworkCheckpoint[SfeConfig]) -> None:
    kept = replace(small, notes=("a note",), generator_digest="f" * 64, title="small")
    metadata = json.loads(json.dumps(SFE.metadata(kept)))
    again = SFE.read(kept.state, metadata)
    assert replace(again, state={}) == replace(kept, state={})
    assert SFE.digest(again) == SFE.digest(kept)
    networks = SFE.build(again)
    assert not networks.training
    for name, tensor in kept.state.items():
        assert torch.equal(networks.state_dict()[name], tensor)


def test_a_digest_is_that_of_sizes_and_numbers(small: NetworkCheckpoint[SfeConfig]) -> None:
    changed = {**small.state, "editor.conv.bias": small.state["editor.conv.bias"] + 1}
    assert SFE.digest(replace(small, state=changed)) != SFE.digest(small)
    with pytest.raises(CheckpointError, match="was changed or damaged"):
        SFE.read(changed, SFE.metadata(small))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "encoder"}, "the metadata name encoder; wanted StyleFeatureEditor"),
        ({"format_version": "9"}, "the format version is 9"),
        ({"config": "{}"}, "is no configuration of StyleFeatureEditor"),
        ({"notes": "[1]"}, "are no JSON list of sentences"),
        ({"notes": "["}, "are no JSON"),
    ],
)
def test_metadata_of_something_else_are_refused(
    small: NetworkCheckpoint[SfeConfig], change: dict[str, str], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        SFE.read(small.state, SFE.metadata(small) | change)
