"""Choices of latent spaces and their masks, beside the published program and PIL."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lsap_core.errors import ShapeError
from lsap_core.generators import GeneratorConfig
from lsap_core.refinement.sam_selection import (
    choose_spaces,
    lanczos_matrix,
    masks_of_choice,
    resize_masks,
    segment_means,
)

SPACES = ("W+", "F4", "F6", "F8", "F10")
SIDES = {"F4": 16, "F6": 32, "F8": 64, "F10": 128}
SQUARE = GeneratorConfig.config_f(256)


@pytest.fixture(scope="module")
def published(reference: Callable[[str], Any]) -> Any:
    return reference("sam_select")


def errors_of(published: Any, spaces: tuple[str, ...] = SPACES) -> Tensor:
    return torch.cat([published[f"invmap_{name}"] for name in spaces], dim=1)


def test_means_of_segments_are_the_published_ones(published: Any) -> None:
    labels, means = segment_means(errors_of(published), published["segments"][None])
    assert labels.tolist() == sorted(set(published["segments"].flatten().tolist()))
    published.check("segment_means", means[0].flip(0).T)  # published columns: F10 first


@pytest.mark.parametrize("case", [0, 1])
def test_choices_and_masks_are_the_published_ones(case: int, published: Any) -> None:
    threshold = float(published["thresholds"][case])
    choice = choose_spaces(errors_of(published), published["segments"][None], threshold=threshold)
    expected = published.expected(f"choice_{case}")  # an index into F10, F8, F6, F4, W+
    np.testing.assert_array_equal(4 - choice[0].numpy(), expected)
    masks = masks_of_choice(choice, len(SPACES), SQUARE)
    for index, name in enumerate(SPACES[1:], start=1):
        published.check(f"mask_{case}_{name}", resize_masks(masks[:, index : index + 1], (SIDES[name], SIDES[name])))


@pytest.mark.parametrize("case", [0, 1])
def test_choices_among_some_spaces_are_the_published_ones(case: int, published: Any) -> None:
    spaces = ("W+", "F4", "F6", "F10")
    threshold = float(published["thresholds"][case])
    choice = choose_spaces(errors_of(published, spaces), published["segments"][None], threshold=threshold)
    names = ("F10", "F8", "F6", "F4", "W+")
    found = torch.tensor([names.index(name) for name in spaces])[choice[0]]
    np.testing.assert_array_equal(found.numpy(), published.expected(f"choice_subset_{case}"))


def test_the_most_editable_acceptable_space_wins_even_where_a_less_editable_one_fails() -> None:
    errors = torch.tensor([[0.2, 0.9, 0.1], [0.9, 0.225, 0.0], [0.9, 0.9, 0.9], [torch.nan] * 3]).T[None, :, None]
    choice = choose_spaces(errors, torch.tensor([[[3, 1, 2, 0]]]), threshold=0.225)
    assert choice.tolist() == [[[0, 1, 2, 2]]]


def test_an_images_choice_does_not_depend_on_its_neighbours(numbers: Callable[..., Tensor]) -> None:
    errors = numbers(3, 4, 12, 10).abs()
    segments = (numbers(3, 12, 10, seed=1) * 2).long()
    together = choose_spaces(errors, segments, threshold=0.8)
    for index in range(3):
        one = choose_spaces(errors[index : index + 1], segments[index : index + 1], threshold=0.8)
        assert torch.equal(together[index : index + 1], one)
    assert len(together.unique()) > 1


@pytest.mark.parametrize(("size", "side"), [(96, 16), (96, 128), (33, 7), (7, 33), (256, 128), (64, 64), (5, 1)])
def test_lanczos_is_that_of_pil(size: int, side: int, numbers: Callable[..., Tensor]) -> None:
    picture = numbers(size, size)
    expected = np.asarray(Image.fromarray(picture.numpy(), mode="F").resize((side, side), Image.Resampling.LANCZOS))
    matrix = lanczos_matrix(size, side)
    np.testing.assert_allclose((matrix @ picture.double() @ matrix.T).numpy(), expected, rtol=1e-5, atol=2e-6)


def test_resized_masks_stay_within_what_the_mask_had() -> None:
    squares = torch.zeros(2, 1, 40, 40)
    squares[:, :, 5:25, 10:30] = 1.0
    masks = squares * torch.tensor([0.0, 0.5, 1.0])[:, None, None]
    for side in (10, 80):
        resized = resize_masks(masks, (side, side))
        assert resized.amin() == 0
        assert torch.equal(resized.amax(dim=(2, 3)), torch.tensor([0.0, 0.5, 1.0]).expand(2, 3))
        assert 0 < (resized[:, 1:] > 0).float().mean() < 1 and len(resized.unique()) > 4  # soft borders


@pytest.mark.parametrize(
    ("box", "resolution", "size", "square", "rows"),
    [
        ((64, 448, 0, 512), 512, (192, 256), 256, (32, 224)),
        ((64, 448, 0, 512), 512, (384, 512), 512, (64, 448)),
        ((4, 28, 0, 32), 32, (24, 32), 32, (4, 28)),
        ((0, 24, 0, 32), 32, (24, 32), 32, (0, 24)),
    ],
)
def test_masks_of_a_content_box_are_zero_around_it(
    box: tuple[int, int, int, int], resolution: int, size: tuple[int, int], square: int, rows: tuple[int, int]
) -> None:
    config = GeneratorConfig.config_f(resolution, content_box=box)
    choice = torch.arange(size[0] * size[1]).view(1, *size) % 3
    masks = masks_of_choice(choice, 3, config)
    assert masks.shape == (1, 3, square, square)
    total = masks.sum(dim=1)[0]  # one-hot inside, nothing outside
    assert (total[slice(*rows)] == 1).all() and total.sum() == size[0] * size[1]


def test_a_content_box_between_columns_is_put_there() -> None:
    config = GeneratorConfig.config_f(32, content_box=(0, 32, 8, 24))
    total = masks_of_choice(torch.zeros(1, 32, 16, dtype=torch.long), 2, config)[0, 0]
    assert (total[:, 8:24] == 1).all() and total.sum() == 32 * 16


def test_segments_of_another_size_or_kind_are_refused() -> None:
    errors = torch.zeros(1, 2, 4, 4)
    for segments in (torch.zeros(1, 4, 5).long(), torch.zeros(2, 4, 4).long(), torch.zeros(1, 4, 4)):
        with pytest.raises(ShapeError, match="in their size"):
            choose_spaces(errors, segments, threshold=0.2)
