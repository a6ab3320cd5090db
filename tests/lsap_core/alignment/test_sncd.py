"""SNCD as a metric and as a loss (Cao et al., LSAP, eq. 6 and 10-11)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lsap_core.alignment import Anchor, SncdLoss, SncdMetric, estimate_anchor, sncd_per_layer
from lsap_core.alignment.sncd import reduce_layers
from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators import Generator
from lsap_core.spaces.styles import normalize, select

# --- the numbers of the authors' program -----------------------------------------------------------------------


@pytest.fixture(params=[32, 1024])
def published(
    request: pytest.FixtureRequest,
    reference: Callable[[str], Any],
    published_generator: Callable[[int], Generator],
) -> tuple[Any, Generator, Anchor]:
    """Published inputs and outputs, their generator, and the published anchor."""
    expected, generator = reference(f"sncd{request.param}"), published_generator(request.param)
    directions = tuple(
        torch.from_numpy(expected.expected(f"anchor_{layer:02d}"))[0] for layer in range(generator.config.num_ws)
    )
    return expected, generator, Anchor(directions, torch.zeros(512), 1.0, "authors", 1000)


def test_similarities_of_w_plus_and_w_codes(published: tuple[Any, Generator, Anchor]) -> None:
    expected, generator, anchor = published
    loss = SncdLoss(generator, anchor, reduction="none")
    expected.check("similarity", 1 - loss(expected["latent"]))
    expected.check("similarity_w", 1 - loss(expected["w_2d"]))


def test_loss_summed_over_the_layers_of_each_stage(published: tuple[Any, Generator, Anchor]) -> None:
    expected, generator, anchor = published
    per_layer = SncdLoss(generator, anchor, reduction="none")(expected["latent"]).mean(dim=0)
    expected.check("sncd_per_layer", per_layer - 1)  # the authors leave out the constant 1
    stages = torch.arange(1, len(per_layer) + 1)
    expected.check("total_sncd_by_stage", per_layer.cumsum(dim=0) - stages)
    whole = SncdLoss(generator, anchor, reduction="sum")(expected["latent"]).mean()
    assert (whole - len(per_layer)).item() == pytest.approx(expected.expected("total_sncd_by_stage")[-1], rel=1e-5)


def test_metric_per_layer_and_averaged(published: tuple[Any, Generator, Anchor]) -> None:
    expected, generator, anchor = published
    metric = SncdMetric(generator.config.num_ws)
    for code in expected["latent"]:
        metric.update(SncdLoss(generator, anchor, reduction="none")(code[None]))
    expected.check("metric_per_layer", metric.compute("none"))
    expected.check("metric", metric.compute())


# --- what the definition implies -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator(random_generator: Callable[..., Generator]) -> Generator:
    return random_generator(dtype=torch.float64).freeze()


@pytest.fixture(scope="module")
def anchor(generator: Generator) -> Anchor:
    return estimate_anchor(generator, num_samples=4000)


@pytest.fixture(scope="module")
def codes(numbers: Callable[..., Tensor]) -> Tensor:
    return 2.0 * numbers(5, 8, 24, dtype=torch.float64)


def widened(anchor: Anchor, directions: list[Tensor]) -> Anchor:
    return Anchor(tuple(directions), anchor.w_avg, anchor.code_deviation, anchor.style_set, anchor.num_samples)


def metric_of(per_layer: Tensor) -> SncdMetric:
    metric = SncdMetric(per_layer.shape[1])
    metric.update(per_layer)
    return metric


def test_m1_sncd_is_the_mean_cosine_distance_over_all_pairs(
    generator: Generator, anchor: Anchor, codes: Tensor, numbers: Callable[..., Tensor]
) -> None:
    synthetic = normalize(
        select(generator.styles(numbers(7, 24, seed=4, dtype=torch.float64)), generator.config, "authors")
    )
    exact = widened(anchor, [unit.mean(dim=0) for unit in synthetic])
    inverse = normalize(select(generator.styles(codes), generator.config, "authors"))
    pairs = [
        1 - torch.dot(synthetic[layer][i], inverse[layer][j]) for layer in range(8) for i in range(7) for j in range(5)
    ]
    found = metric_of(SncdLoss(generator, exact, reduction="none")(codes)).compute()
    assert found.item() == pytest.approx(torch.stack(pairs).mean().item(), abs=1e-12)


def test_m2_codes_along_the_anchor_reach_the_floor_and_nothing_goes_below(
    generator: Generator, anchor: Anchor, codes: Tensor
) -> None:
    along = [3.0 * direction.double()[None] for direction in anchor.directions]
    per_layer = sncd_per_layer(along, anchor)
    torch.testing.assert_close(per_layer[0], 1 - anchor.lengths(), rtol=0, atol=1e-12)
    assert per_layer.mean().item() == pytest.approx(anchor.floor(), abs=1e-12)
    assert (SncdLoss(generator, anchor, reduction="none")(codes) >= 1 - anchor.lengths()).all()


def test_m2_the_codes_of_the_anchor_itself_score_1_minus_its_squared_length(
    generator: Generator, anchor: Anchor
) -> None:
    z = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0)).double()
    per_layer = SncdLoss(generator, anchor, reduction="none")(generator.map(z))
    torch.testing.assert_close(metric_of(per_layer).compute("none"), 1 - anchor.lengths().square(), rtol=0, atol=1e-7)
    assert metric_of(per_layer).compute().item() == pytest.approx(anchor.self_score(), abs=1e-7)


def test_m2_an_independent_sample_scores_the_same_within_sampling_error(generator: Generator, anchor: Anchor) -> None:
    z = torch.randn(4000, 16, generator=torch.Generator().manual_seed(77)).double()
    per_image = SncdLoss(generator, anchor)(generator.map(z))
    error = per_image.std().item() * (1 / 4000 + 1 / 4000) ** 0.5
    assert abs(per_image.mean().item() - anchor.self_score()) < 4 * error
    assert 4 * error < 0.02


@pytest.mark.parametrize("factor", [1e-3, 0.5, 1000.0])
def test_m3_the_length_of_a_style_changes_neither_metric_nor_loss(
    factor: float, generator: Generator, anchor: Anchor, codes: Tensor
) -> None:
    styles = list(generator.styles(codes))
    loss = SncdLoss(generator, anchor)
    expected = loss.of_styles(styles)
    for position in range(len(styles)):
        scaled = [factor * style if index == position else style for index, style in enumerate(styles)]
        torch.testing.assert_close(loss.of_styles(scaled), expected, rtol=0, atol=1e-12)


def test_m3_a_negated_style_does_change_the_loss(generator: Generator, anchor: Anchor, codes: Tensor) -> None:
    styles = generator.styles(codes)
    loss = SncdLoss(generator, anchor)
    negated = [-styles[0], *styles[1:]]
    assert (loss.of_styles(negated) - loss.of_styles(styles)).abs().min() > 1e-4


def test_m4_the_gradient_is_orthogonal_to_each_style(generator: Generator, anchor: Anchor, codes: Tensor) -> None:
    styles = [style.detach().requires_grad_() for style in generator.styles(codes)]
    SncdLoss(generator, anchor).of_styles(styles).sum().backward()
    chosen = select(styles, generator.config, "authors")
    for style, direction in zip(chosen, anchor.directions, strict=True):
        assert style.grad is not None and style.grad.abs().max() > 1e-6
        assert (style * style.grad).sum(dim=1).abs().max() < 1e-12
        unit, mu = normalize([style])[0], direction.double()
        analytic = -(mu - (unit @ mu)[:, None] * unit) / style.norm(dim=1, keepdim=True) / 8
        torch.testing.assert_close(style.grad, analytic, rtol=1e-9, atol=1e-12)
    assert styles[1].grad is None  # the first ToRGB is no member of the authors' set


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_m4_the_gradient_with_respect_to_codes_agrees_with_finite_differences(
    reduction: str, generator: Generator, anchor: Anchor, codes: Tensor
) -> None:
    loss = SncdLoss(generator, anchor, reduction=reduction)  # type: ignore[arg-type]
    assert torch.autograd.gradcheck(loss, codes[:1].clone().requires_grad_(), atol=1e-7)


def test_m4_no_gradient_reaches_the_weights_or_the_anchor(generator: Generator, anchor: Anchor, codes: Tensor) -> None:
    directions = [direction.clone().requires_grad_() for direction in anchor.directions]
    free = codes.clone().requires_grad_()
    SncdLoss(generator, widened(anchor, directions))(free).sum().backward()
    assert free.grad is not None and free.grad.abs().max() > 0
    assert all(direction.grad is None for direction in directions)
    assert all(parameter.grad is None for parameter in generator.parameters())


def test_m5_normalization_comes_before_averaging(generator: Generator, anchor: Anchor, codes: Tensor) -> None:
    lengths = torch.tensor([1.0, 5.0, 0.2, 2.0, 10.0], dtype=torch.float64)[:, None]
    styles = [lengths * style for style in select(generator.styles(codes), generator.config, "authors")]
    found = metric_of(sncd_per_layer(styles, anchor)).compute("none")
    units = [unit.mean(dim=0) for unit in normalize(styles)]
    raw = normalize([style.mean(dim=0, keepdim=True) for style in styles])
    right = torch.stack([1 - unit @ mu.double() for unit, mu in zip(units, anchor.directions, strict=True)])
    wrong = torch.stack([1 - unit[0] @ mu.double() for unit, mu in zip(raw, anchor.directions, strict=True)])
    torch.testing.assert_close(found, right, rtol=0, atol=1e-12)
    assert (right - wrong).abs().min() > 1e-3


def test_m6_a_w_code_scores_like_its_repetition_in_w_plus(
    generator: Generator, anchor: Anchor, numbers: Callable[..., Tensor]
) -> None:
    w = numbers(3, 24, dtype=torch.float64)
    loss = SncdLoss(generator, anchor)
    assert torch.equal(loss(w), loss(w[:, None].repeat(1, 8, 1)))


def test_a_metric_merged_from_pieces_in_any_order_equals_the_whole(
    generator: Generator, anchor: Anchor, codes: Tensor
) -> None:
    per_layer = SncdLoss(generator, anchor, reduction="none")(codes)
    first, second = metric_of(per_layer[:2]), metric_of(per_layer[2:])
    for merged in (first.merge(second), second.merge(first)):
        assert merged.count == 5
        torch.testing.assert_close(merged.compute("none"), per_layer.mean(dim=0), rtol=0, atol=1e-14)
    assert first.count == 2


def test_reductions_over_layers(generator: Generator, anchor: Anchor, codes: Tensor) -> None:
    per_layer, total, mean = (
        SncdLoss(generator, anchor, reduction=reduction)(codes)  # type: ignore[arg-type]
        for reduction in ("none", "sum", "mean")
    )
    assert per_layer.shape == (5, 8) and total.shape == mean.shape == (5,)
    torch.testing.assert_close(total, per_layer.sum(dim=1))
    torch.testing.assert_close(mean, total / 8)
    torch.testing.assert_close(metric_of(per_layer).compute("sum"), total.mean())


def test_each_image_scores_by_itself(generator: Generator, anchor: Anchor, codes: Tensor) -> None:
    loss = SncdLoss(generator, anchor)
    alone = torch.cat([loss(codes[row : row + 1]) for row in range(5)])
    torch.testing.assert_close(loss(codes), alone, rtol=0, atol=1e-12)


def test_another_reduction_is_refused(generator: Generator, anchor: Anchor, codes: Tensor) -> None:
    with pytest.raises(ConfigError, match='layer reduction is "max"; wanted "mean", "sum" or "none"'):
        SncdLoss(generator, anchor, reduction="max")(codes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max"):
        reduce_layers(torch.zeros(1, 1), "max")  # type: ignore[arg-type]


def test_styles_of_another_set_are_refused(generator: Generator, anchor: Anchor, codes: Tensor) -> None:
    with pytest.raises(ShapeError) as caught:
        sncd_per_layer(generator.styles(codes), anchor)
    assert "[20, 20, 20, 16, 16, 16, 12, 12, 12, 8, 8]" in str(caught.value)
    assert "(authors) has [20, 20, 16, 16, 12, 12, 8, 8]" in str(caught.value)
