"""Aligning by five points beside the published code, and beside transforms that are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lsap_core.errors import ShapeError
from lsap_core.images import from_uint8
from lsap_core.perceptual.face_alignment import REFERENCE_POINTS, align_faces, similarity_transform

REFERENCE = torch.tensor(REFERENCE_POINTS, dtype=torch.float64)


def test_transform_and_crop_are_the_published_ones(reference: Callable[[str], Any]) -> None:
    numbers = reference("face_align")
    numbers.check("reference_points", REFERENCE.float())
    transforms = similarity_transform(numbers["landmarks"][None])
    numbers.check("tfm", transforms[0].float())
    crop = align_faces(from_uint8(numbers["image"][None].numpy()), transforms)[0]
    levels = ((crop + 1) * 127.5).permute(1, 2, 0)
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    difference = (levels.round() - torch.from_numpy(numbers.expected("crop")).float()).abs()
    rows, columns = torch.meshgrid(torch.arange(112.0), torch.arange(112.0), indexing="ij")
    at = torch.linalg.solve(
        transforms[0, :, :2], torch.stack([columns, rows], -1).double()[..., None] - transforms[0, :, 2:]
    )
    inside = ((at[..., 0] >= 0) & (at[..., 0] <= torch.tensor([179, 199]))).all(dim=-1)
    assert inside.float().mean() > 0.9
    assert difference[inside].max() <= 2  # OpenCV interpolates with weights of 1/32
    assert difference.max() <= 4  # between the picture and black the steps are larger
    assert difference.mean() < 0.2


def moved(scale: float, degrees: float, shift: tuple[float, float]) -> Tensor:
    angle = math.radians(degrees)
    turn = scale * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return REFERENCE @ turn.double().T + torch.tensor(shift, dtype=torch.float64)


@pytest.mark.parametrize(
    ("scale", "degrees", "shift"), [(0.3, 0.0, (5, 8)), (2.0, 35.0, (-20, 3)), (1.0, 180.0, (0, 0))]
)
def test_points_that_fit_exactly_come_to_lie_on_the_reference(
    scale: float, degrees: float, shift: tuple[float, float]
) -> None:
    points = moved(scale, degrees, shift)
    (transform,) = similarity_transform(points[None])
    torch.testing.assert_close(points @ transform[:, :2].T + transform[:, 2], REFERENCE)


def test_a_mirrored_face_is_mirrored_back() -> None:
    points = moved(1.5, 20.0, (4, 4)) * torch.tensor([-1.0, 1.0]) + torch.tensor([200.0, 0.0])
    (transform,) = similarity_transform(points[None])
    torch.testing.assert_close(points @ transform[:, :2].T + transform[:, 2], REFERENCE)
    assert torch.linalg.det(transform[:, :2]) < 0


def test_the_fit_is_the_least_squares_one_from_the_reference() -> None:
    points = moved(1.2, 10, (3, 7)) + 4 * torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).double()
    # x = a X - b Y + c, y = b X + a Y + d, solved by a general solver.
    x, y = REFERENCE.T
    zero, one = torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    rows = torch.cat([torch.stack([x, -y, one, zero], 1), torch.stack([y, x, zero, one], 1)])
    a, b, c, d = torch.linalg.lstsq(rows, torch.cat([points[:, 0], points[:, 1]])[:, None]).solution[:, 0]
    to_image = torch.stack([torch.stack([a, -b, c]), torch.stack([b, a, d]), torch.tensor([0.0, 0.0, 1.0]).double()])
    torch.testing.assert_close(similarity_transform(points[None])[0], torch.linalg.inv(to_image)[:2])


def test_points_in_one_place_have_no_transform() -> None:
    transforms = similarity_transform(
        torch.stack([torch.zeros(5, 2), torch.full((5, 2), torch.nan), REFERENCE.float()])
    )
    assert transforms[:2].isnan().all() and transforms[2].isfinite().all()


def test_faces_beyond_the_border_are_black_there() -> None:
    picture = torch.full((1, 3, 60, 60), 1.0)
    inside, beyond = align_faces(
        picture.expand(2, -1, -1, -1), similarity_transform(torch.stack([REFERENCE, REFERENCE - 300]))
    )
    assert (inside[:, :60, :60] == 1).all() and (inside[:, 61:] == -1).all()
    assert (beyond == -1).all()


def test_no_points_are_no_faces_and_other_shapes_are_refused() -> None:
    assert align_faces(torch.zeros(0, 3, 8, 8), torch.zeros(0, 2, 3)).shape == (0, 3, 112, 112)
    with pytest.raises(ShapeError, match=r"\[5, 2\]; wanted five points each"):
        similarity_transform(torch.zeros(5, 2))
