"""The style space S and its normalized form S^N."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lsap_core.errors import ConfigError
from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.generators.generator import conv_position, to_rgb_position
from lsap_core.spaces.styles import normalize, select, style_positions


def test_the_authors_set_is_every_convolution_and_the_last_to_rgb() -> None:
    config = GeneratorConfig.config_f(32)
    convs = tuple(conv_position(conv) for conv in range(7))
    assert convs == (0, 2, 3, 5, 6, 8, 9)
    assert style_positions(config, "authors") == (*convs, to_rgb_position(3)) == (0, 2, 3, 5, 6, 8, 9, 10)


def test_the_other_sets_are_the_convolutions_alone_and_everything() -> None:
    config = GeneratorConfig.config_f(32)
    assert style_positions(config, "conv") == (0, 2, 3, 5, 6, 8, 9)
    assert style_positions(config, "full") == tuple(range(11))


def test_vector_l_of_the_authors_set_reads_row_l_of_w_plus(
    random_generator: Callable[..., Generator], numbers: Callable[..., Tensor]
) -> None:
    generator, w_plus = random_generator(), numbers(1, 8, 24)
    before = select(generator.styles(w_plus), generator.config, "authors")
    for row in range(8):
        changed = w_plus.clone()
        changed[:, row] += 1
        after = select(generator.styles(changed), generator.config, "authors")
        assert [not torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [r == row for r in range(8)]


def test_another_style_set_is_refused() -> None:
    with pytest.raises(ConfigError, match='style set is "all"; wanted "authors", "conv" or "full"'):
        style_positions(GeneratorConfig.config_f(32), "all")  # type: ignore[arg-type]


def test_normalized_styles_have_length_1_and_the_same_direction(numbers: Callable[..., Tensor]) -> None:
    styles = [5.0 * numbers(4, 6), 0.01 * numbers(4, 3, seed=1)]
    for unit, style in zip(normalize(styles), styles, strict=True):
        torch.testing.assert_close(unit.norm(dim=1), torch.ones(4))
        torch.testing.assert_close(unit * style.norm(dim=1, keepdim=True), style)


def test_normalizing_twice_changes_nothing(numbers: Callable[..., Tensor]) -> None:
    once = normalize([numbers(4, 6)])
    torch.testing.assert_close(normalize(once)[0], once[0], rtol=0, atol=1e-6)


def test_a_zero_style_stays_zero_and_finite_with_its_gradient() -> None:
    style = torch.zeros(1, 5, requires_grad=True)
    unit = normalize([style])[0]
    unit.sum().backward()
    assert torch.equal(unit, torch.zeros(1, 5))
    assert style.grad is not None and style.grad.isfinite().all()
