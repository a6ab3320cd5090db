"""Boundaries of InterFaceGAN: what they recover, whom they choose, what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from domains.embedded import Attribute
from lsap_core.editing import Direction
from lsap_core.errors import CheckpointError, ConfigError, ShapeError
from lsap_core.generators.generator import Generator
from tasks.editing import fit_direction
from tasks.editing.fit_direction import (
    SampleOptions,
    direction_of,
    fit_boundary,
    measure_response,
    read_codes,
    read_scores,
    sampled_codes,
    score_codes,
)
from tasks.weights.generators import load_generator

BRIGHTNESS = Attribute("brightness", "brightness", "levels", lambda images: images.mean(dim=(1, 2, 3)))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(values: Tensor) -> Tensor:
    return values / values.norm()


@pytest.fixture
def generator(generator_file: str) -> Generator:
    generator = load_generator(generator_file).generator.freeze()
    generator.mapping.w_avg.copy_(numbers(8, seed=9))
    return generator


# --- the boundary -------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest_kernel_fit", [10_000, 0], ids=["SVC", "LinearSVC"])
def test_a_linear_attribute_is_recovered(largest_kernel_fit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_direction, "LARGEST_KERNEL_FIT", largest_kernel_fit)
    codes, truth = numbers(4000, 6), unit(numbers(6, seed=1))
    boundary = fit_boundary(codes, codes @ truth + 3, ratio=0.2)
    assert boundary.solver == ("SVC" if largest_kernel_fit else "LinearSVC")
    assert truth.double().numpy() @ boundary.normal > 0.99
    assert np.linalg.norm(boundary.normal) == pytest.approx(1)
    assert boundary.validation_accuracy == 1 and boundary.num_positive == 800
    assert boundary.remaining_accuracy > 0.8


def test_the_linear_solver_of_large_sets_agrees_with_the_kernel_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = numbers(3000, 16)
    scores = codes @ numbers(16, seed=1) + numbers(3000, seed=2)
    with_kernel = fit_boundary(codes, scores, ratio=0.1)
    monkeypatch.setattr(fit_direction, "LARGEST_KERNEL_FIT", 0)
    linear = fit_boundary(codes, scores, ratio=0.1)
    assert (with_kernel.solver, linear.solver) == ("SVC", "LinearSVC")
    assert with_kernel.normal @ linear.normal >= 0.99


@pytest.mark.parametrize(("ratio", "wanted"), [(0.02, 20), (0.7, 500), (1.0, 500), (30, 30), (9999, 500)])
def test_a_ratio_is_a_share_or_a_number(ratio: float, wanted: int) -> None:
    codes = numbers(1000, 4)
    boundary = fit_boundary(codes, codes[:, 0], ratio=ratio)
    assert boundary.num_positive == wanted
    assert (boundary.remaining_accuracy is None) == (wanted == 500)


def test_validation_is_on_codes_that_were_not_trained_with() -> None:
    """Scores that codes say nothing about, and so many dimensions that the training codes can be told apart anyway."""
    boundary = fit_boundary(numbers(400, 200), numbers(400, seed=1), ratio=0.25)
    assert boundary.validation_accuracy == pytest.approx(0.5, abs=0.15)
    assert boundary.remaining_accuracy == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(("score", "accuracy"), [(2.0, 1.0), (5.0, 0.0), (7.0, 0.0)])
def test_the_remaining_codes_are_divided_in_the_middle_of_the_scores(score: float, accuracy: float) -> None:
    codes = torch.tensor([[0.0], [10.0], [1.0], [0.0], [10.0]])  # 1 remains, on the lower side of the boundary at 5
    boundary = fit_boundary(codes, torch.tensor([0.0, 10.0, score, 0.0, 10.0]), ratio=2)
    assert (boundary.num_positive, boundary.remaining_accuracy) == (2, accuracy)


def test_codes_without_a_score_are_left_out() -> None:
    codes, truth = numbers(600, 4), unit(numbers(4, seed=1))
    scores = codes @ truth
    without = torch.cat([scores, torch.full((200,), torch.nan)])
    found = fit_boundary(torch.cat([codes, 100 * numbers(200, 4, seed=2)]), without, ratio=0.1)
    np.testing.assert_array_equal(found.normal, fit_boundary(codes, scores, ratio=0.1).normal)


def test_the_split_follows_from_the_seed() -> None:
    codes = numbers(500, 4)
    scores = codes[:, 0] + numbers(500, seed=1)
    a, b, c = (fit_boundary(codes, scores, ratio=0.3, seed=seed).normal for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_an_attribute_without_variation_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"scores do not vary enough.*end at 2\.5"):
        fit_boundary(numbers(100, 4), torch.full((100,), 2.5), ratio=0.1)
    rare = torch.zeros(100)
    rare[:5] = 1  # fewer than are chosen
    with pytest.raises(ConfigError, match="the 10 highest end at 0 and the 10 lowest begin at 0"):
        fit_boundary(numbers(100, 4), rare, ratio=0.1)


def test_too_few_codes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"ratio 0\.02 of 50 scored codes chooses 1 on each side"):
        fit_boundary(numbers(50, 4), numbers(50))
    with pytest.raises(ConfigError, match="of 0 scored codes"):
        fit_boundary(numbers(50, 4), torch.full((50,), torch.nan))
    with pytest.raises(ConfigError, match="ratio is -1"):
        fit_boundary(numbers(50, 4), numbers(50), ratio=-1)
    with pytest.raises(ShapeError, match=r"\[50, 4\] and scores \[49\]"):
        fit_boundary(numbers(50, 4), numbers(49))


def test_a_conditional_direction_leaves_the_other_attribute_alone() -> None:
    codes = numbers(4000, 6)
    one, two = codes[:, 0], 0.8 * codes[:, 0] + 0.6 * codes[:, 1]
    told: dict[str, Any] = {"generator_digest": "9f", "provenance": {"seed": 0}}
    condition = direction_of(fit_boundary(codes, one, ratio=0.2), name="one", **told)
    direction = direction_of(fit_boundary(codes, two, ratio=0.2), name="two", **told, conditions=[condition])
    assert abs((direction.vectors * condition.vectors).sum().item()) < 1e-6
    assert direction.vectors[0, 1] > 0.98
    assert direction.provenance["conditional_on"] == [{"name": "one", "digest": condition.digest}]
    assert direction.provenance["validation_accuracy"] == 1 and direction.generator == "9f"
    with pytest.raises(ConfigError, match="lies in the span"):
        direction_of(fit_boundary(codes, one, ratio=0.2), name="again", **told, conditions=[condition])


# --- samples and their scores -------------------------------------------------------------------------


def test_samples_are_truncated_and_follow_from_the_seed(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    def sample(count: int, psi: float, seed: int = 0) -> Tensor:
        return torch.cat(list(sampled_codes(generator, SampleOptions(count, psi, seed))))

    whole, mean = sample(50, 1.0), generator.mapping.w_avg
    torch.testing.assert_close(sample(50, 0.5), mean + 0.5 * (whole - mean))
    assert not torch.equal(sample(50, 1.0, seed=1), whole)
    monkeypatch.setattr(fit_direction, "SAMPLE_BATCH", 20)
    assert [len(w) for w in sampled_codes(generator, SampleOptions(50))] == [20, 20, 10]
    generator.mapping.w_avg.fill_(torch.nan)
    with pytest.raises(ConfigError, match=r"psi is 0\.7, and these weights do not hold the mean"):
        sample(5, 0.7)
    with pytest.raises(ConfigError, match="1 samples"):
        SampleOptions(1)


def test_scores_are_those_of_the_images(generator: Generator) -> None:
    codes = torch.cat(list(sampled_codes(generator, SampleOptions(10, 1.0))))
    expected = generator.synthesize(codes).mean(dim=(1, 2, 3))
    torch.testing.assert_close(score_codes(generator, codes, BRIGHTNESS, batch_size=3), expected)


def test_the_response_is_the_change_by_one_unit_in_deviations(generator: Generator) -> None:
    codes = torch.cat(list(sampled_codes(generator, SampleOptions(40, 1.0))))
    direction = Direction("d", unit(numbers(8, seed=3))[None])
    scores = score_codes(generator, codes, BRIGHTNESS, batch_size=16)
    before, after = (generator.synthesize(w).mean(dim=(1, 2, 3)) for w in (codes, codes + direction.vectors))
    scores[0] = torch.nan
    found = measure_response(generator, direction, codes, scores, BRIGHTNESS, batch_size=16)
    assert found.num_images == 39
    assert found.change == pytest.approx((after - before)[1:].mean().item(), rel=1e-4)
    assert found.change_in_deviations == pytest.approx(found.change / before[1:].std().item(), rel=1e-4)


# --- files of scores ----------------------------------------------------------------------------------


def test_scores_come_from_files(tmp_path: Path) -> None:
    wanted = torch.tensor([0.5, float("nan"), -1.0])
    for array in (wanted.numpy(), wanted.numpy()[:, None]):
        np.save(tmp_path / "scores.npy", array)
        torch.testing.assert_close(read_scores(str(tmp_path / "scores.npy")), wanted, equal_nan=True)
    for text in ("0.5\nnan\n-1\n", "score\n0.5\nNaN\n-1\n", "image,score\na.png,0.5\nb.png,\nc.png,-1\n"):
        (tmp_path / "scores.csv").write_text(text)
        torch.testing.assert_close(read_scores(str(tmp_path / "scores.csv")), wanted, equal_nan=True)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "score\nhigh\n"])
def test_a_file_without_scores_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(ConfigError, match=r"scores\.csv holds no scores"):
        read_scores(str(tmp_path / "scores.csv"))


def test_files_of_other_shapes_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((4, 3), np.float32))
    with pytest.raises(ConfigError, match=r"\[4, 3\]; wanted one score for each code"):
        read_scores(str(tmp_path / "a.npy"))
    with pytest.raises(ConfigError, match=r"\[4, 3\]; wanted finite W codes \[N, 8\]"):
        read_codes(str(tmp_path / "a.npy"), 8)
    assert read_codes(str(tmp_path / "a.npy"), 3).shape == (4, 3)
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ConfigError, match=r"o\.npy is no \.npy file of numbers"):
        read_codes(str(tmp_path / "o.npy"), 3)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_scores(str(tmp_path / "missing.csv"))
