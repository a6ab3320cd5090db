"""Yaw and smile from five points, beside a head that is turned in space."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lsap_core.errors import MissingWeightsError
from lsap_core.perceptual.face_detection import Faces, surest_points
from tasks.faces.face_attributes import NOSE_DEPTH, smile, yaw
from tasks.measuring.attributes import load_attribute
from tasks.measuring.face_points import FacePoints
from tasks.weights.published import TORCH_CACHE, Published

# Eyes, nose, mouth in space: x to the right, y down, z towards the camera; one unit between the eyes.
HEAD = torch.tensor(
    [[-0.5, 0, 0], [0.5, 0, 0], [0, 0.6, NOSE_DEPTH], [-0.4, 1.1, 0], [0.4, 1.1, 0]], dtype=torch.float64
)


def seen(head: Tensor, *, turned: float = 0.0, leaning: float = 0.0, scale: float = 50.0) -> Tensor:
    """Points in the picture of a head that turns about its own axis, then leans, by degrees: parallel projection."""
    t, a = math.radians(turned), math.radians(leaning)
    x, y, z = head.T
    flat = torch.stack([x * math.cos(t) + z * math.sin(t), y], dim=1)
    lean = torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]], dtype=torch.float64)
    return (scale * flat @ lean.T + torch.tensor([300.0, 200.0]))[None]


@pytest.mark.parametrize("turned", [-40.0, -10.0, 0.0, 5.0, 30.0])
@pytest.mark.parametrize("leaning", [0.0, 25.0, -15.0])
@pytest.mark.parametrize("scale", [20.0, 150.0])
def test_yaw_is_the_angle_of_a_turned_head(turned: float, leaning: float, scale: float) -> None:
    assert yaw(seen(HEAD, turned=turned, leaning=leaning, scale=scale)).item() == pytest.approx(turned, abs=1e-3)


def test_smile_is_the_width_of_the_mouth_whatever_the_head_does() -> None:
    wide = HEAD.clone()
    wide[3:, 0] *= 1.5
    for turned, leaning, scale in [(0, 0, 50), (30, 20, 80), (-20, -40, 10)]:
        assert smile(seen(HEAD, turned=turned, leaning=leaning, scale=scale)).item() == pytest.approx(0.8)
        assert smile(seen(wide, turned=turned, leaning=leaning, scale=scale)).item() == pytest.approx(1.2)


def test_without_a_face_there_is_nothing_to_measure() -> None:
    found = torch.cat([seen(HEAD, turned=20), seen(HEAD, turned=-70)])
    points = surest_points([Faces(torch.zeros(n, 5), found[:n]) for n in (2, 0)])
    assert yaw(points)[0].item() == pytest.approx(20, abs=1e-3)  # of the surest face
    assert yaw(points)[1].isnan() and smile(points)[1].isnan()
    in_one_place = torch.ones(1, 5, 2, dtype=torch.float64)
    assert yaw(in_one_place).isnan() and smile(in_one_place).isnan()


def test_attributes_of_faces_are_loaded_by_name(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match=r"needs pnet.npy, rnet.npy, onet.npy, not found in"):
        load_attribute("yaw", device=torch.device("cpu"), published=Published(tmp_path))

    class Detector(torch.nn.Module):
        def detect(self, images: Tensor) -> list[Faces]:
            return [Faces(torch.zeros(1, 5), seen(HEAD, turned=15)) for _ in images]

    found = FacePoints(Detector(), "digest")  # type: ignore[arg-type]
    turn, mouth = (
        load_attribute(name, device=torch.device("cpu"), published=TORCH_CACHE, points=found)
        for name in ("yaw", "smile")
    )
    assert turn.unit == "degrees" and turn.name == "yaw"
    assert turn.measure(torch.zeros(2, 3, 8, 8)).tolist() == pytest.approx([15, 15], abs=1e-3)
    assert mouth.measure(torch.zeros(1, 3, 8, 8)).tolist() == pytest.approx([0.8])
