"""The Gaussian prior on W+, beside the published program and by its definition."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lsap_core.errors import ShapeError
from lsap_core.generators import Generator
from lsap_core.generators.layers import MappingNetwork
from lsap_core.objectives.terms import delta_distance
from lsap_core.refinement.sam_prior import GaussianPrior, gaussianized


@pytest.fixture(scope="module")
def published(reference: Callable[[str], Any]) -> Any:
    return reference("sam_prior")


@pytest.fixture(scope="module")
def codes(published: Any, published_generator: Callable[[int], Generator]) -> Tensor:
    """The 5,000 codes that the published program drew."""
    z = np.random.RandomState(int(published["z_seed"])).standard_normal((5000, 512)).astype(np.float32)
    mapping: MappingNetwork = published_generator(32).mapping
    with torch.no_grad():
        return torch.cat([mapping(part) for part in torch.from_numpy(z).split(500)])


def test_mean_covariance_and_distance_are_the_published_ones(published: Any, codes: Tensor) -> None:
    prior = GaussianPrior.of_codes(codes)
    published.check("mean_w", codes.double().mean(dim=0))
    published.check("mean_v", prior.mean)
    published.check("inv_cov_v_diag", prior.inverse_covariance.diagonal())
    published.check("inv_cov_v_corner", prior.inverse_covariance[:8, :8])
    published.check("mvg", prior.distance(published["wplus"])[0])


def test_the_quadratic_form_is_the_published_one(published: Any, fill: ModuleType) -> None:
    a = torch.from_numpy(fill.array("in/sam_prior/A", (64, 512)) / 8).double()
    mean = torch.from_numpy(fill.array("in/sam_prior/mean_v", (512,), 0.5)).double()
    prior = GaussianPrior(mean, a.T @ a + torch.eye(512, dtype=torch.float64))
    published.check("mvg_simple", prior.distance(published["wplus"])[0])
    rows = published["wplus"][0, :4, None]  # four codes of one row each
    published.check("mvg_first4", prior.distance(rows))


def test_the_delta_loss_is_the_published_one(published: Any) -> None:
    published.check("delta", delta_distance(published["wplus"], 17)[0])


def test_distances_follow_their_definition_and_do_not_depend_on_neighbours(numbers: Callable[..., Tensor]) -> None:
    prior = GaussianPrior.of_codes(numbers(50, 6))
    w_plus = numbers(3, 4, 6, seed=1)
    covariance = torch.cov(gaussianized(numbers(50, 6).double()).T) + 1e-8 * torch.eye(6)
    expected = torch.zeros(3, dtype=torch.float64)
    for image in range(3):
        for row in range(4):
            v = torch.where(w_plus[image, row] > 0, w_plus[image, row], 5 * w_plus[image, row]).double()
            difference = v - prior.mean
            expected[image] += difference @ torch.linalg.solve(covariance, difference)
    torch.testing.assert_close(prior.distance(w_plus), expected)
    torch.testing.assert_close(prior.distance(w_plus[1:2]), expected[1:2])


def test_an_estimate_follows_from_its_seed_and_has_its_minimum_at_the_mean_code(
    random_generator: Callable[..., Generator],
) -> None:
    generator = random_generator()
    prior, again = (GaussianPrior.estimate(generator, num_samples=300, seed=3) for _ in range(2))
    other = GaussianPrior.estimate(generator, num_samples=300, seed=4)
    assert torch.equal(prior.inverse_covariance, again.inverse_covariance)
    assert not torch.equal(prior.inverse_covariance, other.inverse_covariance)
    mean_w = torch.where(prior.mean > 0, prior.mean, prior.mean / 5)
    w_plus = mean_w.expand(1, generator.config.num_ws, -1)
    assert prior.distance(w_plus).item() < 1e-12
    assert prior.distance(w_plus + 0.1).item() > 1


def test_one_code_has_no_covariance() -> None:
    with pytest.raises(ShapeError, match="at least 2"):
        GaussianPrior.of_codes(torch.zeros(1, 4))
