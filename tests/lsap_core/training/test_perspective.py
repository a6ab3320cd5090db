"""Random perspective: the homography is the right one, and every image has its own."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lsap_core.errors import ShapeError
from lsap_core.training.perspective import CORNERS, perspective, random_perspective

Numbers = Callable[..., Tensor]


def streams(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_corners_go_where_they_should(numbers: Numbers) -> None:
    """As torchvision warps with the same corners in pixels, from edge to edge."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as published

    images, (height, width) = numbers(2, 3, 20, 28), (20, 28)
    corners = torch.tensor(CORNERS) * (1 - 0.3 * torch.rand(2, 4, 2, generator=torch.Generator().manual_seed(3)))
    scale = torch.tensor([width / 2, height / 2])
    for image, moved, found in zip(images, corners, perspective(images, corners), strict=True):
        before, after = ((points + 1) * scale for points in (torch.tensor(CORNERS), moved))
        wanted = published.perspective(image, before.tolist(), after.tolist(), InterpolationMode.BILINEAR)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_unmoved_corners_leave_images_as_they_are(numbers: Numbers) -> None:
    images = numbers(2, 1, 9, 16)
    found = random_perspective(images, streams(0, 1), distortion=0.0, probability=1.0)
    torch.testing.assert_close(found, images, rtol=1e-5, atol=1e-5)


def test_nothing_lies_outside_the_moved_corners() -> None:
    found = perspective(torch.ones(1, 1, 64, 64), torch.tensor(CORNERS)[None] * 0.5)
    assert found[0, 0, 16:48, 16:48].sub(1).abs().amax() < 1e-5
    assert found.sum() == pytest.approx(32 * 32, rel=0.07)  # a border of half pixels


def test_every_image_has_its_own_warp(numbers: Numbers) -> None:
    images = numbers(1, 3, 16, 16).expand(4, -1, -1, -1)
    found = random_perspective(images, streams(0, 1, 2, 0), distortion=0.15, probability=1.0)
    assert torch.equal(found[0], found[3])
    assert not torch.allclose(found[0], found[1])
    alone = random_perspective(images[1:2], streams(1), distortion=0.15, probability=1.0)
    torch.testing.assert_close(alone, found[1:2])


def test_as_many_images_are_warped_as_the_probability_says(numbers: Numbers) -> None:
    images = numbers(200, 1, 4, 4)
    found = random_perspective(images, streams(*range(200)), distortion=0.5, probability=0.9)
    is_same = (found == images).flatten(1).all(dim=1)
    assert 10 <= is_same.sum() <= 32  # 20 are expected, with a deviation of 4.2
    assert torch.equal(random_perspective(images, streams(*range(200)), distortion=0.5, probability=0.0), images)


def test_a_stream_for_each_image_is_wanted(numbers: Numbers) -> None:
    with pytest.raises(ShapeError, match="2 random streams for 3 images"):
        random_perspective(numbers(3, 1, 4, 4), streams(0, 1), distortion=0.1, probability=1.0)
