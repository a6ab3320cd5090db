"""The face parser beside the published programs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lsap_core.errors import CheckpointError
from lsap_core.images import from_uint8
from lsap_core.refinement.face_parser import (
    CAR_MERGES,
    FACE_MERGES,
    FACE_MERGES_WITH_HAIR,
    BiSeNet,
    FaceParser,
    build_face_parser,
    merge_labels,
)

KEYS = Path(__file__).parents[2] / "reference" / "keys" / "bisenet.json"


@pytest.fixture(scope="module")
def parser(filled: Callable[..., dict[str, Tensor]]) -> FaceParser:
    return build_face_parser(filled("bisenet", "plain"))


@torch.no_grad()
def test_logits_and_labels_are_the_published_ones(reference: Callable[[str], Any], parser: FaceParser) -> None:
    published = reference("sam_nets")
    image = from_uint8(published["sam_dev"][None].numpy())
    logits = parser.logits(image)
    published.check("bisenet_logits_sub", logits[:, :, ::8, ::8])
    labels = logits.argmax(dim=1)
    with_hair = FaceParser(parser.network, merges=FACE_MERGES_WITH_HAIR)
    for name, found in (
        ("labels", labels),
        ("labels_fused_official", parser(image)),
        ("labels_fused_ganinverter", with_hair(image)),
    ):
        differs = found[0].numpy() != published.expected(name)
        assert differs.mean() <= 1e-3, name


def test_the_network_has_the_released_names() -> None:
    with torch.device("meta"):
        state = BiSeNet().state_dict()
    assert {name: list(value.shape) for name, value in state.items()} == json.loads(KEYS.read_text())["keys"]


def test_merged_labels_are_those_of_each_program() -> None:
    labels = torch.arange(19)
    face = merge_labels(labels, FACE_MERGES)
    assert face.tolist() == [0, 3, 3, 3, 3, 3, 6, 3, 3, 9, 3, 3, 3, 3, 3, 15, 16, 17, 18]
    with_hair = merge_labels(labels, FACE_MERGES_WITH_HAIR)
    assert (with_hair != face).nonzero().flatten().tolist() == [17] and with_hair[17] == 3
    cars = merge_labels(torch.arange(150), CAR_MERGES)
    changed = (cars != torch.arange(150)).nonzero().flatten()
    assert dict(zip(changed.tolist(), cars[changed].tolist(), strict=True)) == {
        6: 3, 13: 3, 21: 60, 29: 9, 83: 20, 102: 20,
    }  # fmt: skip
    assert np.array_equal(labels.numpy(), np.arange(19))  # the labels given are left alone


def test_the_parser_stays_in_eval_mode(parser: FaceParser) -> None:
    parser.train()
    assert not parser.network.training


def test_weights_of_another_network_are_refused(filled: Callable[..., dict[str, Tensor]]) -> None:
    with pytest.raises(CheckpointError, match="wanted the face parser"):
        build_face_parser({"conv1.weight": torch.zeros(1)})
    state = filled("bisenet", "plain")
    del state["ffm.conv1.weight"]
    with pytest.raises(CheckpointError, match=r"ffm\.conv1\.weight +missing"):
        build_face_parser(state)
