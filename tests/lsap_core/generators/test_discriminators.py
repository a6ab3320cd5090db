"""Discriminators in NVlabs' layout: numbers of the published program, and files that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from lsap_core.errors import CheckpointError
from lsap_core.generators import GeneratorConfig
from lsap_core.generators.checkpoints.discriminators import (
    from_nvlabs_discriminator,
    nvlabs_discriminator_name,
    to_nvlabs_discriminator,
)
from lsap_core.generators.discriminator import Discriminator
from lsap_core.objectives.terms import r1_penalty, realness_loss

KEYS = Path(__file__).parents[2] / "reference" / "keys"
SIZES = GeneratorConfig(32, (512, 512, 256, 128))
NAMES = (
    "b32.fromrgb.weight",
    "b32.conv0.weight",
    "b8.skip.weight",
    "b4.conv.weight",
    "b4.fc.bias",
    "b4.out.weight",
)


@pytest.fixture(scope="module")
def state(fill: ModuleType) -> dict[str, Tensor]:
    """Tensors of the discriminator that the published program ran."""
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in Discriminator(SIZES).state_dict().items()}
    published = {nvlabs_discriminator_name(name, 32): shape for name, shape in shapes.items()}
    return fill.fill_dict(published, "stylegan2_ada")


def test_logits_losses_and_gradients_are_the_published_ones(
    reference: Callable[[str], Any], state: dict[str, Tensor]
) -> None:
    numbers = reference("sfe_discriminator")
    network = from_nvlabs_discriminator(state)
    real = numbers["real"].requires_grad_()
    of_real, of_fake = network(real), network(numbers["fake"])
    numbers.check("real_logits", of_real[:, None])
    numbers.check("fake_logits", of_fake[:, None])
    numbers.check("encoder_adversarial", realness_loss(of_fake).mean())
    main = (realness_loss(of_real).mean() + realness_loss(-of_fake).mean()) / 2
    numbers.check("main", main)
    penalty = r1_penalty(of_real, real)
    assert penalty.shape == (4,)
    r1 = 10 / 2 * 16 * penalty.mean()
    numbers.check("r1", r1)
    (main + r1).backward()
    gradients = {nvlabs_discriminator_name(name, 32): value.grad for name, value in network.named_parameters()}
    numbers.check("gradient_norms", torch.stack([gradients[name].norm() for name in NAMES]))
    numbers.check("gradient_fromrgb", gradients["b32.fromrgb.weight"])


def test_names_are_those_of_the_published_discriminator() -> None:
    wanted = json.loads((KEYS / "sfe_discriminator_1024.json").read_text())["keys"]
    with torch.device("meta"):
        own = Discriminator(GeneratorConfig.config_f(1024)).state_dict()
    found = {nvlabs_discriminator_name(name, 1024): list(tensor.shape) for name, tensor in own.items()}
    assert found == {name: shape for name, shape in wanted.items() if not name.endswith("resample_filter")}
    assert sum(tensor.numel() for tensor in own.values()) == 29_012_513


def test_it_goes_there_and_back(state: dict[str, Tensor]) -> None:
    again = to_nvlabs_discriminator(from_nvlabs_discriminator(state), 32)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b16.skip.weight": None}, r"b16\.skip\.weight +missing"),
        ({"b8.skip.bias": torch.zeros(512)}, r"b8\.skip\.bias +\[512\] +nothing"),
        ({"b4.out.bias": torch.full((1,), torch.inf)}, r"b4\.out\.bias holds values that are not finite"),
        ({"b8.conv1.resample_filter": torch.ones(4, 4)}, r"the filter b8\.conv1\.resample_filter is"),
        ({"b32.fromrgb.weight": None}, r"b32\.fromrgb\.weight missing"),
    ],
)
def test_other_tensors_are_refused(state: dict[str, Tensor], change: dict[str, Tensor | None], message: str) -> None:
    changed = {name: tensor for name, tensor in {**state, **change}.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=message):
        from_nvlabs_discriminator(changed)
