"""Ranger, beside the published optimizer."""

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lsap_core.errors import ConfigError
from lsap_core.training import Ranger, ranger
from lsap_core.training.ranger import LOOKAHEAD_EVERY, centralized, step_size

NAMES = ("conv", "linear", "bias", "prelu")
VARIANTS = {
    "p": {"lr": 1e-3},
    "wd": {"lr": 1e-3, "weight_decay": 0.01},
    "alt": {"lr": 1e-2, "betas": (0.9, 0.99)},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("precision", "dtype"), [("f32", torch.float32), ("f64", torch.float64)])
def test_twenty_five_steps_are_the_published_ones(
    reference: Callable[[str], Any], variant: str, precision: str, dtype: torch.dtype
) -> None:
    numbers = reference(f"ranger_{precision}")
    # The variant centralizes convolutions only, which is not offered: its linear layer is left out.
    names = [name for name in NAMES if (variant, name) != ("alt", "linear")]
    parameters = [torch.nn.Parameter(numbers[f"p0_{name}"].to(dtype)) for name in names]
    optimizer = Ranger(parameters, **VARIANTS[variant])
    found: list[list[Tensor]] = [[] for _ in names]
    for _ in range(25):
        for name, parameter in zip(names, parameters, strict=True):
            parameter.grad = numbers[f"c_{name}"].to(dtype) * (parameter.detach() - numbers[f"t_{name}"].to(dtype))
        optimizer.step()
        for kept, parameter in zip(found, parameters, strict=True):
            kept.append(parameter.detach().clone())
    for name, kept in zip(names, found, strict=True):
        numbers.check(f"{variant}_{name}", torch.stack(kept))


def run(parameters: list[torch.nn.Parameter], optimizer: Ranger, steps: range, *, seed: int = 7) -> None:
    """Some steps with gradients that depend on the step alone."""
    for step in steps:
        stream = torch.Generator().manual_seed(1000 * seed + step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=stream)
        optimizer.step()


def make() -> list[torch.nn.Parameter]:
    """A weight and a bias."""
    stream = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(*shape, generator=stream)) for shape in ((4, 3, 3, 3), (4,))]


def test_a_saved_optimizer_goes_on_bit_for_bit() -> None:
    parameters = make()
    optimizer = Ranger(parameters)
    run(parameters, optimizer, range(8))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    others = [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    other = Ranger(others)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    run(parameters, optimizer, range(8, 15))  # over the next mixing with the slow weights
    run(others, other, range(8, 15))
    for a, b in zip(parameters, others, strict=True):
        assert torch.equal(a, b)
        assert all(torch.equal(optimizer.state[a][name], other.state[b][name]) for name in ("m", "v", "slow"))
        assert optimizer.state[a]["step"] == other.state[b]["step"] == 15


def test_a_parameter_without_gradient_is_left_alone_and_later_starts_with_its_own_first_step() -> None:
    parameters, late = make(), torch.nn.Parameter(torch.ones(3, 2))
    optimizer = Ranger([*parameters, late])
    run(parameters, optimizer, range(10))
    assert torch.equal(late, torch.ones(3, 2)) and late not in optimizer.state
    alone = torch.nn.Parameter(torch.ones(3, 2))
    fresh = Ranger([alone])
    for step in range(LOOKAHEAD_EVERY + 2):
        late.grad = alone.grad = torch.full((3, 2), 0.5) * torch.tensor([1.0, step])
        run(parameters, optimizer, range(step, step + 1))
        fresh.step()
    assert torch.equal(late, alone) and not torch.equal(late, torch.ones(3, 2))


def test_parameters_moved_block_by_block_move_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, in_blocks = make(), make()
    run(at_once, Ranger(at_once), range(8))
    monkeypatch.setattr(ranger, "BLOCK_ELEMENTS", 40)
    assert len(list(ranger.blocks_of(in_blocks))) > 1
    run(in_blocks, Ranger(in_blocks), range(8))
    assert all(torch.equal(one, other) for one, other in zip(at_once, in_blocks, strict=True))


def test_gradients_of_weights_have_mean_0_for_each_output_and_vectors_stay() -> None:
    gradient = torch.arange(24.0).view(2, 3, 4)
    assert centralized(gradient).mean(dim=(1, 2)).abs().max() == 0
    assert centralized(gradient[0, 0]).equal(gradient[0, 0])


def test_the_first_rectified_step_is_the_sixth() -> None:
    assert [step_size(step, 0.95, 0.999)[1] for step in range(1, 8)] == [False] * 5 + [True] * 2
    assert step_size(1, 0.95, 0.999)[0] == pytest.approx(20)
    assert step_size(10**6, 0.95, 0.999)[0] == pytest.approx(1, abs=1e-6)


def test_a_closure_is_called_with_gradients() -> None:
    (parameter,) = make()[:1]
    optimizer = Ranger([parameter])

    def closure() -> float:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss.item()

    before = parameter.detach().square().sum().item()
    assert optimizer.step(closure) == before
    assert parameter.square().sum() < before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.0}, "lr is 0.0; wanted a positive number"),
        ({"betas": (0.9, 1.0)}, r"betas are \(0.9, 1.0\); wanted two numbers"),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"weight_decay": -1.0}, "weight_decay -1.0"),
    ],
)
def test_impossible_constants_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Ranger(make(), **change)
