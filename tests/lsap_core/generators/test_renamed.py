"""Generators under the names of GenForce, Hammer and MMGeneration, beside what those programs made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lsap_core.errors import CheckpointError
from lsap_core.generators.checkpoints import build_generator, from_generator_document
from lsap_core.generators.checkpoints.layouts import ASSUMED, NO_MEAN
from lsap_core.generators.resample import fir_kernel

State = dict[str, Tensor]

PROGRAMS = {
    "genforce": ("genforce_generator_16", "genforce16_image", "truncation.w_avg"),
    "hammer": ("hammer_generator_16", "hammer16_image", "w_avg"),
    "mmgeneration": ("mmgeneration_generator_8", "mmgeneration8_image", "w_avg"),
}


@pytest.fixture(scope="module")
def state_of(filled: Callable[..., State]) -> Callable[[str], State]:
    """Weights under a program's names, without FIR filters."""
    kept: dict[str, State] = {}

    def get(program: str) -> State:
        if program not in kept:
            kept[program] = filled(PROGRAMS[program][0], "renamed")
        state = dict(kept[program])
        if program == "hammer":
            state["synthesis.filter"] = fir_kernel()
        return state

    return get


@pytest.mark.parametrize("program", PROGRAMS)
def test_images_are_those_of_the_program(
    program: str, state_of: Callable[[str], State], reference: Callable[[str], Any]
) -> None:
    _, numbers, mean = PROGRAMS[program]
    expected = reference(numbers)
    name, checkpoint = from_generator_document(state_of(program))
    generator = build_generator(checkpoint).freeze()
    w = generator.map(expected["z"])
    expected.check("w", w)
    expected.check("img_w", generator.synthesize(w))
    expected.check("img_wplus", generator.synthesize(expected["wplus"]))
    assert name == program and any(note.startswith(ASSUMED) for note in checkpoint.notes)
    if mean in state_of(program):
        assert torch.equal(generator.mapping.w_avg, state_of(program)[mean])
    else:
        assert NO_MEAN in checkpoint.notes


def wrapped(program: str, state: State) -> Any:
    """As the program's training saves a generator, with its average beside it."""
    if program == "mmgeneration":
        both = {
            f"{network}.{name}": value for network in ("generator", "generator_ema") for name, value in state.items()
        }
        return {"meta": {"mmgen_version": "0.7"}, "state_dict": {**both, "generator_ema.steps": torch.tensor(7)}}
    return {"models": {"generator": state, "generator_smooth": state, "discriminator": {"x": torch.ones(1)}}}


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_average_of_a_training_is_read_with_filters_and_mean(
    program: str, state_of: Callable[[str], State]
) -> None:
    state = state_of(program)
    _, alone = from_generator_document(state)
    filters = {
        "genforce": {"synthesis.upsample.kernel": fir_kernel()[None, None] * 4},
        "hammer": {"synthesis.layer1.filter": fir_kernel()},
        "mmgeneration": {"to_rgbs.0.upsample.kernel": fir_kernel() * 4, "w_avg": torch.zeros(16)},
    }[program]
    _, found = from_generator_document(wrapped(program, state | filters))
    assert found.digest == alone.digest
    with pytest.raises(CheckpointError, match="the filter"):
        from_generator_document(wrapped(program, state | {name: value + 1 for name, value in filters.items()}))


def test_a_mean_of_zeros_is_unknown(state_of: Callable[[str], State]) -> None:
    state = state_of("genforce")
    _, found = from_generator_document(state | {"truncation.w_avg": torch.zeros(24)})
    assert NO_MEAN in found.notes
    with pytest.raises(CheckpointError, match=r"truncation.w_avg +\[6\] +\[24\]"):
        from_generator_document(state | {"truncation.w_avg": torch.ones(6)})


def test_what_tells_genforce_from_hammer_may_not_be_missing(state_of: Callable[[str], State]) -> None:
    state = state_of("genforce")
    del state["truncation.w_avg"]
    with pytest.raises(CheckpointError, match="both have these names with other numbers"):
        from_generator_document(state)


@pytest.mark.parametrize(
    ("program", "change", "words"),
    [
        ("genforce", {"mapping.label_weight": torch.ones(3, 16)}, "normalized together with z"),
        ("hammer", {"mapping.embedding.weight": torch.ones(8, 3)}, "an embedding of classes"),
        ("genforce", {"synthesis.layer1.noise": torch.ones(1, 12, 1, 1)}, "1 tensors differ"),
        ("mmgeneration", {"convs.1.skip.weight": torch.ones(1)}, "convs.1.skip.weight"),
        (
            "mmgeneration",
            {"to_rgb1.conv.weight_orig": None},
            "the MMGeneration generator: to_rgb1.conv.weight_orig missing",
        ),
        ("genforce", {"synthesis.early_layer.const": torch.ones(1, 12, 8, 4)}, "5 tensors differ"),
    ],
)
def test_other_networks_under_these_names_are_refused(
    program: str, change: dict[str, Any], words: str, state_of: Callable[[str], State]
) -> None:
    state = {name: value for name, value in (state_of(program) | change).items() if value is not None}
    with pytest.raises(CheckpointError, match=words):
        from_generator_document(state)


def test_classes_are_not_asked_of_a_generator_without(state_of: Callable[[str], State]) -> None:
    with pytest.raises(CheckpointError, match="without classes"):
        from_generator_document(state_of("mmgeneration"), label=1)
