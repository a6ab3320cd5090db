"""FFHQ's crop beside another way to compute it, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
from numpy.typing import NDArray
from PIL import Image

from tasks.errors import BadImageError
from tasks.faces.face_crop import FacePoints, Points, crop_face, paste_face, side_of

EYES_APART, MOUTH_DOWN, MOUTH_WIDE = 60.0, 55.0, 40.0
COLOURS = {"left_eye": (255, 0, 0), "right_eye": (0, 255, 0), "mouth_left": (0, 0, 255), "mouth_right": (255, 255, 0)}


def face_points(centre: tuple[float, float], *, scale: float = 1.0, degrees: float = 0.0) -> FacePoints:
    """A symmetrical face with its eyes' middle at a place."""
    turn = scale * np.exp(1j * np.radians(degrees))
    places = [-EYES_APART / 2, EYES_APART / 2, -MOUTH_WIDE / 2 + 1j * MOUTH_DOWN, MOUTH_WIDE / 2 + 1j * MOUTH_DOWN]
    moved = [complex(*centre) + turn * place for place in places]
    return FacePoints(*(np.array([place.real, place.imag]) for place in moved))


def photo_of(points: FacePoints, size: tuple[int, int], radius: float = 5.0) -> Image.Image:
    """A grey photo with a smooth dot of its own colour at each of the four points."""
    width, height = size
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.full((height, width, 3), 60.0)
    for name, colour in COLOURS.items():
        x, y = getattr(points, name)
        dot = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * radius**2))[..., None]
        pixels += dot * (np.array(colour) - 60.0)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def centre_of(picture: Image.Image, colour: tuple[int, int, int]) -> Points:
    """Where the dot of a colour lies: the mean place of what is like it."""
    distance = np.abs(np.asarray(picture, float) - colour).max(axis=-1)
    weight = np.clip(100 - distance, 0, None) ** 2
    rows, columns = np.indices(weight.shape)
    return np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()


def expected_places(size: int) -> dict[str, Points]:
    """Where FFHQ puts the points of that face, without any quad: half a side is max(2 eyes apart, 1.8 mouth down)."""
    half = max(2.0 * EYES_APART, 1.8 * MOUTH_DOWN)
    per_pixel = size / (2 * half)
    eyes_row = size / 2 - 0.1 * MOUTH_DOWN * per_pixel - 0.5
    middle, mouth_row = size / 2 - 0.5, eyes_row + MOUTH_DOWN * per_pixel
    return {
        "left_eye": np.array([middle - EYES_APART / 2 * per_pixel, eyes_row]),
        "right_eye": np.array([middle + EYES_APART / 2 * per_pixel, eyes_row]),
        "mouth_left": np.array([middle - MOUTH_WIDE / 2 * per_pixel, mouth_row]),
        "mouth_right": np.array([middle + MOUTH_WIDE / 2 * per_pixel, mouth_row]),
    }


@pytest.mark.parametrize("degrees", [0.0, 25.0, -70.0, 180.0])
@pytest.mark.parametrize(("scale", "size"), [(1.0, 256), (1.6, 128), (0.6, 512)])
def test_eyes_and_mouth_land_where_ffhq_puts_them(degrees: float, scale: float, size: int) -> None:
    points = face_points((310.3, 240.7), scale=scale, degrees=degrees)
    photo = photo_of(points, (640, 520), radius=5 * scale)
    crop = crop_face(photo, points.quad(), size)
    assert crop.size == (size, size)
    for name, place in expected_places(size).items():
        assert np.abs(centre_of(crop, COLOURS[name]) - place).max() < 0.35, name


@pytest.mark.parametrize(("mouth_down", "factor"), [(20.0, 2.0 * 60), (90.0, 1.8 * 90)])
def test_the_square_is_as_large_as_the_eyes_or_the_mouth_demand(mouth_down: float, factor: float) -> None:
    eye, corner = np.array([30.0, 0.0]), np.array([20.0, mouth_down])
    flip = np.array([-1.0, 1.0])
    quad = FacePoints(eye * flip, eye, corner * flip, corner).quad()
    assert side_of(quad) == pytest.approx(2 * factor)
    np.testing.assert_allclose(quad.mean(axis=0), [0, 0.1 * mouth_down], atol=1e-9)
    np.testing.assert_allclose(quad[0], [-factor, 0.1 * mouth_down - factor], atol=1e-9)  # top left first,
    np.testing.assert_allclose(quad[1], [-factor, 0.1 * mouth_down + factor], atol=1e-9)  # then bottom left


def test_a_skew_face_follows_the_formula() -> None:
    """e = right - left eye, m = mouth - eyes; x = e - (-m_y, m_x), normalized; written out in complex numbers."""
    rng = np.random.default_rng(0)
    left, right, mouth_left, mouth_right = rng.normal(size=(4, 2)) * 40 + [[0, 0], [80, 0], [10, 90], [70, 90]]
    e, m = complex(*(right - left)), complex(*((mouth_left + mouth_right) / 2 - (left + right) / 2))
    x = e - 1j * m
    x *= max(2 * abs(e), 1.8 * abs(m)) / abs(x)
    centre = complex(*((left + right) / 2)) + 0.1 * m
    wanted = [centre - x - 1j * x, centre - x + 1j * x, centre + x + 1j * x, centre + x - 1j * x]
    quad = FacePoints(left, right, mouth_left, mouth_right).quad()
    np.testing.assert_allclose(quad @ [1, 1j], wanted)


def test_landmarks_of_68_and_of_5_points() -> None:
    points = np.arange(136, dtype=np.float64).reshape(68, 2)
    face = FacePoints.from_landmarks(points)
    assert face.left_eye.tolist() == [77, 78] and face.right_eye.tolist() == [89, 90]  # means of 36-41 and 42-47
    assert face.mouth_left.tolist() == [96, 97] and face.mouth_right.tolist() == [108, 109]  # 48 and 54
    five = FacePoints.from_landmarks(points[:5])
    assert [five.left_eye[0], five.right_eye[0], five.mouth_left[0], five.mouth_right[0]] == [0, 2, 6, 8]


# --- where the square leaves the photo, and large photos ----------------------------------------------


def texture(width: int, height: int, smoothness: float = 3.0) -> NDArray[np.uint8]:
    """Smooth coloured noise: like a photo, without a place that looks like another one."""
    noise = scipy.ndimage.gaussian_filter(
        np.random.default_rng(0).normal(size=(height, width, 3)), (smoothness, smoothness, 0), mode="wrap"
    )
    return np.clip(128 + 45 * noise / noise.std(), 0, 255).astype(np.uint8)


def published_padding(pixels: NDArray[np.uint8], quad: Points) -> tuple[NDArray[np.float64], Points]:
    """The published steps for a square that leaves a photo on all sides, written in one piece."""
    height, width = pixels.shape[:2]
    qsize = np.hypot(*(quad[3] - quad[0]))
    border = max(int(np.rint(qsize * 0.1)), 3)
    x0, y0 = np.floor(quad.min(0)).astype(int)
    x1, y1 = np.ceil(quad.max(0)).astype(int)
    pad = [max(-x0 + border, 0), max(-y0 + border, 0), max(x1 - width + border, 0), max(y1 - height + border, 0)]
    assert max(pad) > border - 4
    pad = np.maximum(pad, int(np.rint(qsize * 0.3)))
    image = np.pad(pixels.astype(np.float64), ((pad[1], pad[3]), (pad[0], pad[2]), (0, 0)), "reflect")
    h, w, _ = image.shape
    y, x, _ = np.ogrid[:h, :w, :1]
    mask = np.maximum(
        1.0 - np.minimum(x / pad[0], (w - 1 - x) / pad[2]), 1.0 - np.minimum(y / pad[1], (h - 1 - y) / pad[3])
    )
    blurred = scipy.ndimage.gaussian_filter(image, [qsize * 0.02, qsize * 0.02, 0])
    image += (blurred - image) * np.clip(mask * 3.0 + 1.0, 0.0, 1.0)
    image += (np.median(image, axis=(0, 1)) - image) * np.clip(mask, 0.0, 1.0)
    return np.clip(np.rint(image), 0, 255), quad + pad[:2]


@pytest.mark.parametrize("degrees", [0.0, 20.0])
def test_beyond_the_photo_it_goes_on_as_published(degrees: float) -> None:
    points = face_points((100, 90), degrees=degrees)
    pixels = (255 * (texture(205, 190) / 255) ** 3).astype(np.uint8)  # whose median is not its mean
    quad, size = points.quad(), 240
    crop = np.asarray(crop_face(Image.fromarray(pixels), quad, size), float)
    padded, moved = published_padding(pixels, quad)
    # Every pixel of the crop from the padded photo, by the corners, with SciPy's linear interpolation.
    share = (np.arange(size) + 0.5) / size
    at = moved[0] + share[None, :, None] * (moved[3] - moved[0]) + share[:, None, None] * (moved[1] - moved[0])
    wanted = np.stack(
        [scipy.ndimage.map_coordinates(padded[..., c], [at[..., 1], at[..., 0]], order=1) for c in range(3)], axis=-1
    )
    assert np.abs(crop - wanted).max() <= 2
    assert np.abs(crop - wanted).mean() < 0.6


def test_inside_the_photo_nothing_is_blurred() -> None:
    pixels = texture(400, 400)
    quad = np.array([[99.5, 99.5], [99.5, 299.5], [299.5, 299.5], [299.5, 99.5]])
    crop = np.asarray(crop_face(Image.fromarray(pixels), quad, 200))
    assert np.array_equal(crop, pixels[100:300, 100:300])


def test_a_photo_of_a_few_pixels_goes_on_with_its_last_ones() -> None:
    crop = crop_face(Image.new("RGB", (12, 9), (200, 100, 50)), face_points((6, 3), scale=0.3).quad(), 64)
    assert np.abs(np.asarray(crop, int) - (200, 100, 50)).max() <= 1


@pytest.mark.parametrize("supersampling", [1, 4])
def test_large_photos_are_shrunk_first_without_moving_anything(supersampling: int) -> None:
    points = face_points((900.0, 700.0), scale=6.5, degrees=10)  # a square of 1560 pixels
    crop = crop_face(photo_of(points, (1800, 1700), radius=40), points.quad(), 128, supersampling=supersampling)
    for name, place in expected_places(128).items():
        assert np.abs(centre_of(crop, COLOURS[name]) - place).max() < 0.35, name


def test_a_crop_of_a_crop_is_aligned() -> None:
    points = face_points((310, 240), degrees=15)
    assert not points.is_aligned(640, 520)
    places = expected_places(256)
    again = FacePoints(*(places[name] for name in COLOURS))
    assert again.is_aligned(256, 256)
    assert not again.is_aligned(256, 300)
    np.testing.assert_allclose(again.quad()[0], [-0.5, -0.5], atol=1e-9)


# --- back into the photo --------------------------------------------------------------------------------


def interpolation_error(pixels: NDArray[np.uint8]) -> float:
    """Most that linear interpolation between pixels can be wrong, from second differences, and two roundings."""
    bends = [np.abs(np.diff(pixels.astype(float), n=2, axis=axis)).max() for axis in (0, 1)]
    return sum(bends) / 8 + 1


@pytest.mark.parametrize("size", [300, 600, 1200])
@pytest.mark.parametrize("feather", [0.0, 0.05])
def test_an_unedited_face_restores_the_photo(size: int, feather: float) -> None:
    pixels = texture(640, 520)
    quad = face_points((320, 240), degrees=12).quad()  # sides of 240
    photo = Image.fromarray(pixels)
    pasted = np.asarray(paste_face(photo, crop_face(photo, quad, size), quad, feather=feather), int)
    assert np.abs(pasted - pixels).max() <= interpolation_error(pixels)
    assert 0 < np.abs(pasted - pixels).mean() < 0.3


def test_an_edited_face_changes_its_square_and_nothing_else() -> None:
    points = face_points((320, 240), degrees=30)
    quad = points.quad()
    photo = Image.fromarray(texture(640, 520))
    pasted = np.asarray(paste_face(photo, Image.new("RGB", (64, 64), (9, 99, 199)), quad), int)
    columns, rows = np.meshgrid(np.arange(640), np.arange(520))
    centre, x = quad.mean(axis=0), (quad[3] - quad[0]) / side_of(quad)
    across = (columns - centre[0]) * x[0] + (rows - centre[1]) * x[1]
    down = (rows - centre[1]) * x[0] - (columns - centre[0]) * x[1]
    farthest = np.maximum(np.abs(across), np.abs(down)) / (side_of(quad) / 2)
    assert (pasted[farthest < 1 - 1e-9] == (9, 99, 199)).all()
    assert np.array_equal(pasted[farthest > 1 + 1e-9], np.asarray(photo)[farthest > 1 + 1e-9])


def test_edges_fade() -> None:
    photo, quad = Image.new("RGB", (300, 300)), np.array([[50, 50], [50, 250], [250, 250], [250, 50]]) - 0.5
    row = np.asarray(paste_face(photo, Image.new("RGB", (200, 200), (255,) * 3), quad, feather=0.1))[150, :, 0].astype(
        int
    )
    assert (np.diff(row[:150]) >= 0).all() and np.diff(row[:150]).max() < 25
    assert row[49] == 0 and row[71] == 255


def test_a_face_that_was_cut_beyond_the_photo_leaves_its_edge_sharp() -> None:
    pixels = texture(205, 190)
    photo, quad = Image.fromarray(pixels), face_points((100, 90)).quad()
    crop = crop_face(photo, quad, 480)
    pasted = np.asarray(paste_face(photo, crop, quad), int)
    # Where the crop is blurred by a share b, the photo keeps the share b: at most a quarter of the blur is left.
    blurred = scipy.ndimage.gaussian_filter(pixels.astype(float), (4.8, 4.8, 0), mode="reflect")
    assert np.abs(pasted - pixels).max() <= interpolation_error(pixels) + np.abs(blurred - pixels).max() / 4
    assert np.abs(pasted - pixels).max() < 0.5 * np.abs(blurred - pixels).max()
    edited = np.asarray(paste_face(photo, Image.new("RGB", (480, 480)), quad), int)
    assert (edited[40:150, 40:160] == 0).all() and np.array_equal(edited[:, 0], pixels[:, 0])


def test_a_face_beside_the_photo_changes_nothing() -> None:
    photo = Image.fromarray(texture(60, 50))
    far = np.array([[500, 500], [500, 600], [600, 600], [600, 500.0]])
    assert np.array_equal(paste_face(photo, Image.new("RGB", (8, 8)), far), photo)


# --- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("landmarks", "message"),
    [
        (np.zeros((21, 2)), r"the landmarks are \[21, 2\]; 68 points"),
        (np.zeros((68, 3)), r"\[68, 3\]"),
        (np.full((5, 2), np.nan), "some not finite or far away"),
        (np.full((68, 2), 1e308), "some not finite or far away"),
    ],
)
def test_other_landmarks_are_refused(landmarks: Points, message: str) -> None:
    with pytest.raises(BadImageError, match=message) as caught:
        FacePoints.from_landmarks(landmarks)
    assert caught.value.reason == "bad_landmarks"


def test_points_that_make_no_square_or_lie_elsewhere_are_refused() -> None:
    with pytest.raises(BadImageError, match="eyes and mouth have no direction"):
        FacePoints.from_landmarks(np.ones((5, 2))).quad()
    with pytest.raises(BadImageError, match=r"lie at 700, 200, outside the 640x520 pixels of the upright photo"):
        face_points((700, 200)).check_inside(640, 520)
    with pytest.raises(BadImageError, match=r"a square of 48000 pixels in a photo of 640x520"):
        FacePoints(*(np.array(p, float) for p in [(-5680, 250), (6320, 250), (319, 260), (321, 260)])).check_inside(
            640, 520
        )
    face_points((320, 200)).check_inside(640, 520)
