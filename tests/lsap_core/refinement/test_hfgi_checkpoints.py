"""HFGI's files: released layouts load strictly, our own form goes there and back."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lsap_core.errors import CheckpointError
from lsap_core.refinement.hfgi_checkpoints import HFGI, from_hfgi_document, is_hfgi_document
from lsap_core.refinement.hfgi_networks import HfgiConfig, HfgiNetworks
from lsap_core.refinement.network_files import NetworkCheckpoint

Document = dict[str, Any]


@pytest.fixture(scope="module")
def tables(filled: Callable[..., dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Both networks under released names, counters of batches among them."""
    names = {"grid_align": "hfgi_residual_aligner", "residue": "hfgi_residual_encoder"}
    found = {module: filled(table, "plain") for module, table in names.items()}
    found["residue"]["conv_layer1.1.num_batches_tracked"] = torch.tensor(7)
    return found


@pytest.fixture
def document(tables: dict[str, dict[str, Tensor]]) -> Document:
    """A file as it is released: encoder and generator are in it too."""
    state = {f"{module}.{name}": tensor for module, table in tables.items() for name, tensor in table.items()}
    others = {"encoder.input_layer.0.weight": torch.zeros(1), "decoder.input.input": torch.zeros(1)}
    return {"state_dict": {**others, **state}, "latent_avg": torch.zeros(18, 512), "opts": {}}


@pytest.fixture(scope="module")
def small() -> NetworkCheckpoint[HfgiConfig]:
    config = HfgiConfig(1, 6, "small")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = HFGI.canonical(config, HfgiNetworks(config).state_dict(), what="a test")
    options = {"settings": {"l2_weight": 1.0}, "seed": 3}
    return NetworkCheckpoint(config, state, "safetensors", options, ("a note",), "ab", "cd", "digits")


def test_every_released_layout_gives_the_same_networks(
    document: Document, tables: dict[str, dict[str, Tensor]]
) -> None:
    found = from_hfgi_document(document)
    assert (found.config, found.layout) == (HfgiConfig(), "hfgi")
    networks = HFGI.build(found)
    assert not networks.training
    state = networks.state_dict()
    for ours, module in (("aligner", "grid_align"), ("encoder", "residue")):
        weights = {name: tensor for name, tensor in tables[module].items() if not name.endswith("num_batches_tracked")}
        assert all(torch.equal(state[f"{ours}.{name}"], tensor) for name, tensor in weights.items())
        getattr(networks, ours).load_state_dict({**getattr(networks, ours).state_dict(), **tables[module]}, strict=True)
    converted = {"align": tables["grid_align"], "res": tables["residue"], "encoder": {}, "decoder": {}}
    distributed = {f"module.{name}": tensor for name, tensor in document["state_dict"].items()}
    for other, layout in (
        (document["state_dict"], "hfgi"),
        ({"state_dict": distributed}, "hfgi"),
        (converted, "ganinverter"),
    ):
        assert is_hfgi_document(other)
        checkpoint = from_hfgi_document(other)
        assert (HFGI.digest(checkpoint), checkpoint.layout) == (HFGI.digest(found), layout)
        assert len(checkpoint.notes) == 1 and "drifted" in checkpoint.notes[0]  # an encoder is in each of them
    del converted["encoder"]
    assert from_hfgi_document(converted).notes == ()


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "not_finite", "twice"])
def test_released_files_load_strictly(document: Document, change: str) -> None:
    state = document["state_dict"]
    name = "grid_align.conv_layer2.0.res_layer.1.weight"
    wanted = "aligner.conv_layer2.0.res_layer.1.weight"
    if change == "missing":
        del state[name]
    elif change == "unexpected":
        state["residue.condition_scale2.0.weight"] = torch.zeros(1)
        wanted = "encoder.condition_scale2.0.weight"
    elif change == "shape":
        state[name] = state[name][:, :-1]
    elif change == "not_finite":
        state[name] = state[name] * torch.nan
    else:
        state[f"module.{name}"] = state[name]
    with pytest.raises(CheckpointError, match=wanted.replace(".", r"\.")):
        from_hfgi_document(document)


@pytest.mark.parametrize(
    "other", [None, {}, {"state_dict": {"encoder.x": 1, "residue.x": 1}}, {"res": {}}, {"g_ema": {}}]
)
def test_other_files_are_refused(other: object) -> None:
    assert not is_hfgi_document(other)
    with pytest.raises(CheckpointError, match="wanted HFGI's networks"):
        from_hfgi_document(other)


def test_sizes_without_end_are_refused(document: Document) -> None:
    state = document["state_dict"]
    state["residue.condition_scale3.2.weight"] = torch.zeros(1, 1, 1, 1).expand(1 << 40, 1, 1, 1)
    with pytest.raises(CheckpointError, match="every size"):
        from_hfgi_document(document)


def test_our_own_form_goes_there_and_back(small: NetworkCheckpoint[HfgiConfig]) -> None:
    metadata = json.loads(json.dumps(HFGI.metadata(small)))
    assert all(isinstance(value, str) for value in metadata.values())
    found = HFGI.read(small.state, metadata)
    assert replace(found, state={}) == replace(small, state={})
    assert HFGI.digest(found) == HFGI.digest(small)
    again = HFGI.canonical(found.config, HFGI.build(found).state_dict(), what="a test")
    assert all(torch.equal(again[name], tensor) for name, tensor in small.state.items())


def test_a_changed_file_is_refused(small: NetworkCheckpoint[HfgiConfig]) -> None:
    metadata = HFGI.metadata(small)
    changed = {name: tensor.clone() for name, tensor in small.state.items()}
    changed["encoder.condition_shift3.2.bias"][3] += 1e-3
    for state, changes, message in (
        (changed, {}, "digest"),
        (small.state, {"kind": "encoder"}, "name encoder"),
        (small.state, {"format_version": "2"}, "update it"),
        (small.state, {"config": "{}"}, "tensors differ"),
        (small.state, {"config": '{"widths": ["small"]}'}, "no configuration"),
        (small.state, {"config": "["}, "no configuration"),
        (small.state, {"options": "[]"}, "options"),
        (small.state, {"notes": "{"}, "no JSON"),
    ):
        with pytest.raises(CheckpointError, match=message):
            HFGI.read(state, {**metadata, **changes})


def test_the_digest_is_that_of_sizes_and_values(small: NetworkCheckpoint[HfgiConfig]) -> None:
    half = {name: tensor.half() for name, tensor in small.state.items()}
    with pytest.raises(CheckpointError, match="float32"):
        HFGI.digest(replace(small, state=half))
    counters = {"aligner.conv_layer1.1.num_batches_tracked": torch.tensor(3)}
    assert HFGI.digest(replace(small, state={**small.state, **counters})) == HFGI.digest(small)
