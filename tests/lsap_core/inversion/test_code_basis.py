"""Adam in another basis of codes, and where the basis comes from."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lsap_core.alignment import Anchor, estimate_anchor
from lsap_core.errors import ConfigError
from lsap_core.generators import Generator
from lsap_core.inversion import OptimizationEmbedder, OptimizationSettings
from lsap_core.inversion.adam import Decays, adam_
from lsap_core.inversion.code_basis import CodeBasis, sensitive_basis
from lsap_core.perceptual.features import FeatureDistance, FeatureNet, FeatureNetConfig

Numbers = Callable[..., Tensor]

SHORT = OptimizationSettings(num_steps=5, record_every=5)


@pytest.fixture(scope="module")
def generator(random_generator: Callable[..., Generator]) -> Generator:
    return random_generator().freeze()


@pytest.fixture(scope="module")
def anchor(generator: Generator) -> Anchor:
    return estimate_anchor(generator, num_samples=500)


@pytest.fixture(scope="module")
def perceptual() -> FeatureDistance:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = FeatureNet(FeatureNetConfig(32, 3, channels=(6, 8, 8)))
    return FeatureDistance(network.requires_grad_(False).eval())


@pytest.fixture(scope="module")
def basis(generator: Generator, anchor: Anchor, perceptual: FeatureDistance) -> CodeBasis:
    return sensitive_basis(generator, perceptual, anchor, space="w_plus", samples_per_dimension=2)


@pytest.mark.parametrize("space", ["w", "w_plus"])
def test_entries_as_a_basis_change_nothing(
    space: str, generator: Generator, anchor: Anchor, perceptual: FeatureDistance, numbers: Numbers
) -> None:
    config = generator.config
    num_rows = 1 if space == "w" else config.num_ws
    target = generator.synthesize(generator.map(numbers(2, 16, seed=5))).clamp(-1, 1)
    found = []
    for is_told in (False, True):
        settings = replace(SHORT, space=space)  # type: ignore[arg-type]
        embedder = OptimizationEmbedder(generator, anchor, perceptual, settings)
        if is_told:
            entries = torch.eye(config.w_dim).expand(num_rows, -1, -1)
            embedder.basis = CodeBasis(entries, torch.ones(num_rows, config.w_dim))
        found.append(embedder(target, (1, 2)))
    assert torch.equal(found[0].w_plus, found[1].w_plus)
    assert all(torch.equal(a, b) for a, b in zip(found[0].noise, found[1].noise, strict=True))


def test_codes_are_turned_and_other_columns_are_not(basis: CodeBasis, generator: Generator, numbers: Numbers) -> None:
    width = basis.shares.numel()
    values = numbers(3, width + 4, seed=1)
    turned = basis.coordinates(values)
    unit = replace(basis, shares=torch.ones_like(basis.shares))
    torch.testing.assert_close(unit.step(turned), values)
    assert torch.equal(turned[:, width:], values[:, width:])
    wanted = torch.einsum("nkd,ked->nke", values[:, :width].unflatten(1, basis.shares.shape), basis.vectors)
    torch.testing.assert_close(turned[:, :width], wanted.flatten(1))


def test_directions_are_those_that_the_distance_feels(
    basis: CodeBasis, generator: Generator, anchor: Anchor, perceptual: FeatureDistance, numbers: Numbers
) -> None:
    """Along the last of a row an image changes at least twice as much as along the middle one."""
    codes = generator.expand(generator.map(numbers(8, 16, seed=9)))
    features = perceptual.features(generator.synthesize(codes))

    def change(row: int, direction: int) -> float:
        moved = codes.clone()
        moved[:, row] += basis.vectors[row, direction]
        return float(perceptual.distance(perceptual.features(generator.synthesize(moved)), features).mean())

    for row in (0, 3):
        least, middle, most = (change(row, direction) for direction in (0, basis.shares.shape[1] // 2, -1))
        assert most > 2 * middle > 2 * least
    assert ((basis.shares >= 0) & (basis.shares <= 1)).all() and basis.shares.max() > 0.999
    again = sensitive_basis(generator, perceptual, anchor, space="w_plus", samples_per_dimension=2)
    assert torch.equal(again.vectors, basis.vectors) and torch.equal(again.shares, basis.shares)


def test_decays_are_those_of_adam(numbers: Numbers) -> None:
    decays = Decays(0.7, 0.9)
    wanted = numbers(2, 5, seed=3).clone().requires_grad_(True)
    found, first, second = wanted.detach().clone(), torch.zeros(2, 5), torch.zeros(2, 5)
    adam = torch.optim.Adam([wanted], lr=0.2, betas=(0.7, 0.9))
    for step in range(1, 8):
        gradient = numbers(2, 5, seed=10 + step)
        wanted.grad = gradient.clone()
        adam.step()
        adam_(
            found,
            first,
            second,
            gradient,
            decays=decays,
            rate=torch.full((2, 1), 0.2 / decays.first_correction(step)),
            root_correction=torch.full((2, 1), decays.second_correction(step) ** 0.5),
            moves=torch.ones(2, 1, dtype=torch.bool),
        )
    torch.testing.assert_close(found, wanted.detach())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first_decay": 1.0}, "first_decay is 1.0; wanted a number from 0 to below 1"),
        ({"second_decay": -0.1}, "second_decay is -0.1; wanted"),
        ({"basis": "pixels"}, 'basis is "pixels"; wanted one of entries, sensitivity'),
        ({"basis": "sensitivity", "lpips_weight": 0.0, "mse_weight": 1.0}, 'set basis to "entries"'),
    ],
)
def test_settings_that_cannot_run_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SHORT, **changes)
