"""The rows beside every SNCD."""

from collections.abc import Callable

import pytest
import torch

from lsap_core.alignment import Anchor, ReferenceRows, SncdLoss, estimate_anchor, reference_rows
from lsap_core.generators import Generator

SAMPLES = 4000


@pytest.fixture(scope="module")
def generator(random_generator: Callable[..., Generator]) -> Generator:
    return random_generator().freeze()


@pytest.fixture(scope="module")
def anchor(generator: Generator) -> Anchor:
    return estimate_anchor(generator, num_samples=SAMPLES)


@pytest.fixture(scope="module")
def rows(generator: Generator, anchor: Anchor) -> ReferenceRows:
    return reference_rows(generator, anchor, num_samples=SAMPLES)


def test_truncation_lowers_sncd_toward_the_floor(rows: ReferenceRows) -> None:
    assert 0 < rows.floor <= rows.mean_code < rows.truncated_05 < rows.truncated_07 < rows.synthetic


def test_synthetic_codes_score_1_minus_the_squared_length_of_the_anchor(rows: ReferenceRows, anchor: Anchor) -> None:
    assert rows.synthetic == pytest.approx(anchor.self_score(), abs=0.005)
    assert rows.synthetic > 1.2 * rows.floor


def test_rows_are_sncd_of_codes_drawn_apart_from_those_of_the_anchor(
    generator: Generator, anchor: Anchor, rows: ReferenceRows
) -> None:
    z = torch.randn(SAMPLES, 16, generator=torch.Generator().manual_seed(1))
    w = generator.map(z)
    distance = SncdLoss(generator, anchor)
    assert rows.floor == anchor.floor()
    assert rows.synthetic == pytest.approx(distance(w).mean().item(), abs=1e-6)
    halfway = anchor.w_avg + 0.5 * (w - anchor.w_avg)
    assert rows.truncated_05 == pytest.approx(distance(halfway).mean().item(), abs=1e-6)
    assert rows.mean_code == pytest.approx(distance(anchor.w_avg[None]).item(), abs=1e-6)
    assert reference_rows(generator, anchor, num_samples=SAMPLES, seed=0).synthetic != rows.synthetic


def test_every_row_is_labelled(rows: ReferenceRows) -> None:
    assert rows.labelled() == {
        "floor": rows.floor,
        "mean code": rows.mean_code,
        "synthetic, psi = 0.5": rows.truncated_05,
        "synthetic, psi = 0.7": rows.truncated_07,
        "synthetic, psi = 1": rows.synthetic,
    }
