"""MTCNN beside the published networks, and the pyramid that finds faces of every size and place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image
from torch import Tensor

from lsap_core.errors import CheckpointError, ConfigError, ShapeError
from lsap_core.images import from_uint8
from lsap_core.perceptual import face_detection
from lsap_core.perceptual.face_boxes import calibrate, non_maximum_suppression, square
from lsap_core.perceptual.face_detection import (
    DetectorSettings,
    FaceDetector,
    ProposalNet,
    _cut,
    _resize,
    _scales,
    build_face_detector,
)

TABLES = json.loads((Path(__file__).parents[2] / "reference" / "keys" / "mtcnn.json").read_text())


@pytest.fixture(scope="module")
def weights(fill: ModuleType) -> list[dict[str, Tensor]]:
    return [fill.fill_dict(TABLES[name], "plain", salt=f"{name}:") for name in ("pnet", "rnet", "onet")]


@pytest.fixture(scope="module")
def detector(weights: list[dict[str, Tensor]]) -> FaceDetector:
    return build_face_detector(*weights)


def seen(pixels: Tensor) -> Tensor:
    """What the published code makes of pixels."""
    return (pixels.reshape(-1, *pixels.shape[-3:]).permute(0, 3, 1, 2).float() - 127.5) * 0.0078125


def test_networks_answer_as_the_published_ones(detector: FaceDetector, reference: Callable[[str], Any]) -> None:
    numbers = reference("mtcnn_nets")
    with torch.no_grad():
        answers = {
            ("pnet_boxes", "pnet_scores"): detector.proposal(seen(numbers["image"])),
            ("rnet_boxes", "rnet_scores"): detector.refinement(seen(numbers["rnet_crops"])),
            ("onet_landmarks", "onet_boxes", "onet_scores"): detector.output(seen(numbers["onet_crops"])),
        }
    for names, values in answers.items():
        for name, value in zip(names, values, strict=True):
            numbers.check(name, value)


def test_boxes_are_computed_as_published(reference: Callable[[str], Any]) -> None:
    numbers = reference("mtcnn_nets")
    boxes, offsets = numbers["boxes"].double().numpy(), numbers["offsets"].double().numpy()
    assert non_maximum_suppression(boxes, 0.3).tolist() == numbers.expected("nms_union").tolist()
    assert non_maximum_suppression(boxes, 0.3, of_smaller=True).tolist() == numbers.expected("nms_min").tolist()
    numbers.check("calibrated", calibrate(boxes, offsets).astype(np.float32))
    # The published function leaves the score out; here it stays.
    squares = square(boxes)
    np.testing.assert_allclose(squares[:, :4], numbers.expected("squared")[:, :4], atol=2e-4, rtol=1e-5)
    assert np.array_equal(squares[:, 4], boxes[:, 4])


def test_softmax_over_classes_is_an_option(weights: list[dict[str, Tensor]]) -> None:
    over_columns = build_face_detector(*weights)
    over_classes = build_face_detector(*weights, DetectorSettings(softmax="classes"))
    picture = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0)) * 2 - 1
    offsets, columns = over_columns.proposal(picture)
    same_offsets, classes = over_classes.proposal(picture)
    assert torch.equal(offsets, same_offsets)
    torch.testing.assert_close(columns.sum(dim=3), torch.ones_like(columns.sum(dim=3)))
    torch.testing.assert_close(classes.sum(dim=1), torch.ones_like(classes.sum(dim=1)))


def test_a_map_of_one_column_is_all_face_to_the_published_softmax() -> None:
    """What normalizing over columns means: a picture as narrow as the window proposes every row of itself."""
    _, probabilities = ProposalNet()(torch.zeros(1, 3, 40, 12))
    assert torch.equal(probabilities, torch.ones_like(probabilities))


# --- from pictures to faces -------------------------------------------------------------------------


class LikeAFrame(torch.nn.Module):
    """Plays the later networks: a bright square in a dark frame is a face, the box fits, a face's points are fixed."""

    POINTS = (0.3, 0.7, 0.5, 0.35, 0.65, 0.4, 0.4, 0.6, 0.8, 0.8)

    def __init__(self, has_points: bool = False):
        super().__init__()
        self.has_points = has_points

    def forward(self, windows: Tensor) -> tuple[Tensor, ...]:
        score = likeness(windows)
        answers = torch.zeros(len(windows), 4), torch.stack([1 - score, score], dim=1)
        return (torch.tensor(self.POINTS).expand(len(windows), 10), *answers) if self.has_points else answers


class LikeAFrameEverywhere(torch.nn.Module):
    """Plays the first network: the same for every 12 x 12 window, 2 pixels apart."""

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        windows = picture.unfold(2, 12, 2).unfold(3, 12, 2)  # [N, 3, h, w, 12, 12]
        count, _, rows, columns = windows.shape[:4]
        score = likeness(windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)).reshape(count, 1, rows, columns)
        return torch.zeros(count, 4, rows, columns), torch.cat([1 - score, score], dim=1)


def likeness(windows: Tensor) -> Tensor:
    """1 for a bright square in a dark frame of a sixth of the window's side, less for what looks different."""
    side = windows.shape[-1]
    wanted = torch.zeros(side, side)
    wanted[side // 6 : -side // 6, side // 6 : -side // 6] = 1
    return 1 - ((windows + 1) / 2 - wanted).abs().mean(dim=(1, 2, 3))


@pytest.fixture
def by_frame() -> FaceDetector:
    settings = DetectorSettings(thresholds=(0.7, 0.72, 0.74))
    return FaceDetector(LikeAFrameEverywhere(), LikeAFrame(), LikeAFrame(True), settings)  # type: ignore[arg-type]


def picture_with(*squares: tuple[int, int, int], size: tuple[int, int] = (120, 160)) -> Tensor:
    """Bright squares (left, top, side) on black."""
    pixels = np.zeros((1, *size, 3), np.uint8)
    for left, top, side in squares:
        pixels[0, top : top + side, left : left + side] = 255
    return from_uint8(pixels)


@pytest.mark.parametrize(("left", "top", "side"), [(25, 35, 16), (60, 40, 48), (110, 22, 30), (8, 80, 30)])
def test_a_face_is_found_where_it_is_at_every_size(by_frame: FaceDetector, left: int, top: int, side: int) -> None:
    (faces,) = by_frame.detect(picture_with((left, top, side)))
    best, frame = faces.boxes[0], side / 4
    wanted = torch.tensor([left - frame, top - frame, left + side + frame - 1, top + side + frame - 1]).double()
    shared = (torch.minimum(best[2:4], wanted[2:]) - torch.maximum(best[:2], wanted[:2]) + 1).prod()
    areas = (best[2:4] - best[:2] + 1).prod(), (wanted[2:] - wanted[:2] + 1).prod()
    assert shared / (sum(areas) - shared) > 0.5  # a scale is 0.7 times the one before it
    corner, length = best[:2], best[2] - best[0] + 1
    torch.testing.assert_close(faces.landmarks[0, 0], corner + length * torch.tensor([0.3, 0.4], dtype=torch.float64))
    torch.testing.assert_close(faces.landmarks[0, 4], corner + length * torch.tensor([0.65, 0.8], dtype=torch.float64))


def test_images_do_not_depend_on_their_neighbours_and_none_is_made_up(by_frame: FaceDetector) -> None:
    one, none, two = picture_with((20, 30, 40)), picture_with(), picture_with((15, 15, 30), (105, 65, 30))
    alone, together = by_frame.detect(two)[0], by_frame.detect(torch.cat([one, none, two]))
    assert [len(faces.boxes) > 0 for faces in together] == [True, False, True]
    assert together[1].landmarks.shape == (0, 5, 2)
    assert torch.equal(alone.boxes, together[2].boxes) and torch.equal(alone.landmarks, together[2].landmarks)
    centres = {(float(b[0] + b[2]) // 2 // 80, float(b[1] + b[3]) // 2 // 60) for b in together[2].boxes}
    assert centres == {(0, 0), (1, 1)}
    scores = together[2].boxes[:, 4]
    assert torch.equal(scores, scores.sort(descending=True).values)


@pytest.mark.parametrize("size", [(12, 300), (20, 20), (1, 1)])
def test_pictures_smaller_than_a_face_have_none(by_frame: FaceDetector, size: tuple[int, int]) -> None:
    (faces,) = by_frame.detect(picture_with(size=size))
    assert faces.landmarks.shape == (0, 5, 2)


def test_a_picture_that_is_not_finite_has_no_face(detector: FaceDetector) -> None:
    (faces,) = detector.detect(torch.full((1, 3, 64, 64), torch.nan))
    assert len(faces.boxes) == 0


def test_random_networks_give_boxes_and_points_that_fit(detector: FaceDetector) -> None:
    picture = torch.rand(2, 3, 64, 80, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for faces in detector.detect(picture):
        assert faces.boxes.shape == (len(faces.landmarks), 5)
        assert faces.boxes.isfinite().all() and faces.landmarks.isfinite().all()


def test_the_pyramid_has_the_published_scales() -> None:
    scales = _scales(256, 20.0)
    assert scales[0] == 0.6 and len(scales) == 8
    assert 256 * scales[-1] > 12 >= 256 * scales[-1] * 0.707
    assert _scales(20, 20.0) == []


@pytest.mark.parametrize("size", [(154, 154), (37, 51), (24, 24), (300, 290)])
def test_pictures_are_resized_as_pillow_does(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 180, 3), dtype=np.uint8)
    ours = _resize(torch.from_numpy(pixels).permute(2, 0, 1)[None].float(), size)[0].permute(1, 2, 0).numpy()
    pillows = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR)).astype(float)
    assert np.abs(ours - pillows).max() <= 1


def test_windows_are_black_outside_the_picture() -> None:
    levels = torch.full((1, 3, 10, 10), 200.0)
    boxes = np.array(
        [[0, 0, 9, 9, 1], [-10, 0, 9, 19, 1], [50, 50, 59, 59, 1], [-30, -30, -1, -1, 1], [5, 5, 2, 2, 1.0]]
    )
    windows = _cut(levels, boxes, 24)
    assert (windows[0] == 200).all()
    assert (windows[1, :, :10, 14:] == 200).all() and (windows[1, :, 14:] == 0).all()
    assert (windows[1, :, :, :10] == 0).all()
    assert (windows[2:] == 0).all()


# --- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_face": 5}, "min_face is 5; wanted 12 pixels or more"),
        ({"softmax": "rows"}, 'softmax is "rows"'),
        ({"thresholds": (0.1, 1.5, 0.2)}, "is 1.5; wanted 0 to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DetectorSettings(**settings)


def test_other_images_and_weights_are_refused(detector: FaceDetector, weights: list[dict[str, Tensor]]) -> None:
    with pytest.raises(ShapeError, match=r"\[1, 1, 8, 8\]; wanted \[N, 3, H, W\]"):
        detector.detect(torch.zeros(1, 1, 8, 8))
    with pytest.raises(CheckpointError, match=r"MTCNN \(pnet.npy\)[^$]*features\.conv1\.weight"):
        build_face_detector(weights[1], weights[1], weights[2])
    with pytest.raises(CheckpointError, match=r"MTCNN \(onet.npy\)[^$]*conv6_3"):
        build_face_detector(*weights[:2], {n: t for n, t in weights[2].items() if not n.startswith("conv6_3")})


# --- the whole detector beside the published steps, written out plainly -------------------------------


def plain_resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))


def plain_nms(boxes: list[list[float]], overlap: float, of_smaller: bool = False) -> list[int]:
    """Numbers of the boxes that stay, one pair of boxes at a time."""
    order = sorted(range(len(boxes)), key=lambda index: -boxes[index][4])
    kept: list[int] = []
    for index in order:
        x1, y1, x2, y2 = boxes[index][:4]
        for other in kept:
            a1, b1, a2, b2 = boxes[other][:4]
            shared = max(0, min(x2, a2) - max(x1, a1) + 1) * max(0, min(y2, b2) - max(y1, b1) + 1)
            areas = (x2 - x1 + 1) * (y2 - y1 + 1), (a2 - a1 + 1) * (b2 - b1 + 1)
            if shared / (min(areas) if of_smaller else sum(areas) - shared) > overlap:
                break
        else:
            kept.append(index)
    return kept


def plain_moved(box: list[float], offset: np.ndarray) -> list[float]:
    width, height = box[2] - box[0] + 1, box[3] - box[1] + 1
    return [box[i] + (width, height)[i % 2] * float(offset[i]) for i in range(4)] + [box[4]]


def plain_square(box: list[float]) -> list[float]:
    width, height = box[2] - box[0] + 1, box[3] - box[1] + 1
    side = max(width, height)
    left, top = box[0] + width * 0.5 - side * 0.5, box[1] + height * 0.5 - side * 0.5
    return [float(np.round(value)) for value in (left, top, left + side - 1, top + side - 1)] + [box[4]]


def plain_window(pixels: np.ndarray, box: list[float], side: int) -> np.ndarray:
    left, top, right, bottom = (int(value) for value in box[:4])
    window = np.zeros((bottom - top + 1, right - left + 1, 3), np.uint8)
    for y in range(max(top, 0), min(bottom + 1, pixels.shape[0])):
        for x in range(max(left, 0), min(right + 1, pixels.shape[1])):
            window[y - top, x - left] = pixels[y, x]
    return plain_resize(window, (side, side))


def plain_detection(detector: FaceDetector, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    height, width = pixels.shape[:2]
    p, r, o = detector.settings.thresholds
    boxes: list[list[float]] = []
    offsets: list[np.ndarray] = []
    scale = 12 / 20
    while min(height, width) * scale > 12:
        small = plain_resize(pixels, (int(np.ceil(width * scale)), int(np.ceil(height * scale))))
        moves, probabilities = detector.proposal(seen(torch.tensor(small)))
        here: list[tuple[list[float], np.ndarray]] = []
        for row in range(probabilities.shape[2]):
            for column in range(probabilities.shape[3]):
                score = float(probabilities[0, 1, row, column])
                if score > p:
                    corners = (2 * column + 1, 2 * row + 1, 2 * column + 13, 2 * row + 13)
                    box = [float(np.round(corner / scale)) for corner in corners] + [score]
                    here.append((box, moves[0, :, row, column].numpy()))
        for index in plain_nms([box for box, _ in here], 0.5):
            boxes.append(here[index][0])
            offsets.append(here[index][1])
        scale *= 0.707
    boxes = [plain_square(plain_moved(boxes[i], offsets[i])) for i in plain_nms(boxes, 0.7)]

    moves, scores = detector.refinement(seen(torch.tensor(np.stack([plain_window(pixels, b, 24) for b in boxes]))))
    sure = [i for i in range(len(boxes)) if scores[i, 1] > r]
    boxes, offsets = [[*boxes[i][:4], float(scores[i, 1])] for i in sure], [moves[i].numpy() for i in sure]
    boxes = [plain_square(plain_moved(boxes[i], offsets[i])) for i in plain_nms(boxes, 0.7)]

    points, moves, scores = detector.output(seen(torch.tensor(np.stack([plain_window(pixels, b, 48) for b in boxes]))))
    sure = [i for i in range(len(boxes)) if scores[i, 1] > o]
    landmarks = []
    for i in sure:
        (x, y), (w, h) = boxes[i][:2], (boxes[i][2] - boxes[i][0] + 1, boxes[i][3] - boxes[i][1] + 1)
        landmarks.append([(x + w * float(points[i, n]), y + h * float(points[i, n + 5])) for n in range(5)])
    boxes = [plain_moved([*boxes[i][:4], float(scores[i, 1])], moves[i].numpy()) for i in sure]
    kept = plain_nms(boxes, 0.7, of_smaller=True)
    return np.array([boxes[i] for i in kept]), np.array([landmarks[i] for i in kept])


@torch.no_grad()
def test_the_whole_detector_takes_the_published_steps(
    weights: list[dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_pillow(levels: Tensor, size: tuple[int, int]) -> Tensor:
        pixels = levels[0].permute(1, 2, 0).numpy().astype(np.uint8)
        return torch.tensor(plain_resize(pixels, size[::-1])).permute(2, 0, 1)[None].float()

    monkeypatch.setattr(face_detection, "_resize", by_pillow)  # so that levels are equal, not within one
    noise = scipy.ndimage.gaussian_filter(np.random.default_rng(3).normal(size=(64, 72, 3)), (2, 2, 0))
    pixels = np.clip(128 + 400 * noise, 0, 255).astype(np.uint8)
    # Offsets of untrained networks are wild: a tenth of them keeps the boxes near the picture.
    tame = [
        {
            name: tensor * (0.1 if name.startswith(("conv4_2", "conv5_2", "conv6_2")) else 1)
            for name, tensor in net.items()
        }
        for net in weights
    ]
    detector = build_face_detector(*tame, DetectorSettings(thresholds=(0.06, 0.3, 0.2)))
    (faces,) = detector.detect(from_uint8(pixels[None]))
    boxes, landmarks = plain_detection(detector, pixels)
    assert len(boxes) > 5
    np.testing.assert_allclose(faces.boxes, boxes, atol=1e-3)
    np.testing.assert_allclose(faces.landmarks, landmarks, atol=1e-3)
