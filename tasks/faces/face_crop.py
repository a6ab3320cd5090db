"""The crop that FFHQ's faces were cut with, and back into the photo.

From the eyes and the corners of the mouth follows a square in the photo, turned as the face is (Karras et al. 2019,
section A): the generators and encoders of FFHQ know faces only in this position. Points are (x, y) in pixels of the
upright photo, (0, 0) the centre of its first pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray
from PIL import Image

from tasks.errors import BadImageError

Points = NDArray[np.float64]
Whole = NDArray[np.int64]

EYES_PER_HALF_SIDE, MOUTH_PER_HALF_SIDE = 2.0, 1.8
DOWN_TO_CENTRE = 0.1
LEAST_BORDER = 3
BORDER, PADDING, BLUR = 0.1, 0.3, 0.02  # of the square's side
LEFT_EYE, RIGHT_EYE, MOUTH_CORNERS = slice(36, 42), slice(42, 48), (48, 54)  # of 68 points
ALIGNED_WITHIN = 0.05
FARTHEST = 1e6  # pixels
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class FacePoints:
    """What the crop needs of a face; "left" is the photo's, not the person's.

    Attributes:
        left_eye: its centre [2].
        right_eye: likewise.
        mouth_left: corner of the mouth [2].
        mouth_right: likewise.
    """

    left_eye: Points
    right_eye: Points
    mouth_left: Points
    mouth_right: Points

    @staticmethod
    def from_landmarks(landmarks: Points) -> FacePoints:
        """From 68 points in iBUG's order, or five: eyes, tip of the nose, corners of the mouth.

        Raises:
            BadImageError: ("bad_landmarks") another number of points, or places that no photo has.
        """
        points = np.asarray(landmarks, dtype=np.float64)
        is_near = bool((np.abs(points) < FARTHEST).all())
        if points.shape not in ((68, 2), (5, 2)) or not is_near:
            raise BadImageError(
                "bad_landmarks",
                f"the landmarks are {list(points.shape)}{'' if is_near else ', some not finite or far away'}; "
                "68 points (iBUG's order) or 5 (eyes, nose, corners of the mouth) of x and y were wanted: correct them",
            )
        if len(points) == 5:
            return FacePoints(points[0], points[1], points[3], points[4])
        eyes = points[LEFT_EYE].mean(axis=0), points[RIGHT_EYE].mean(axis=0)
        return FacePoints(*eyes, points[MOUTH_CORNERS[0]], points[MOUTH_CORNERS[1]])

    def quad(self) -> Points:
        """Corners of the face's square in the photo [4, 2]: top left, bottom left, bottom right, top right.

        With e the vector between the eyes and m the one from their middle to the mouth's: x = e - rot90(m), scaled to
        max(2 |e|, 1.8 |m|), is half the width, y = rot90(x) half the height, around the eyes' middle + m / 10.

        Raises:
            BadImageError: ("bad_landmarks") eyes and mouth are in one place.
        """
        eyes_middle, mouth_middle = (self.left_eye + self.right_eye) / 2, (self.mouth_left + self.mouth_right) / 2
        between_eyes, to_mouth = self.right_eye - self.left_eye, mouth_middle - eyes_middle
        x = between_eyes - _turned(to_mouth)
        half_side = max(EYES_PER_HALF_SIDE * np.hypot(*between_eyes), MOUTH_PER_HALF_SIDE * np.hypot(*to_mouth))
        if np.hypot(*x) == 0 or half_side == 0:
            raise BadImageError(
                "bad_landmarks", "eyes and mouth have no direction, those of a face were wanted: correct the landmarks"
            )
        x *= half_side / np.hypot(*x)
        y, centre = _turned(x), eyes_middle + DOWN_TO_CENTRE * to_mouth
        return np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y])

    def check_inside(self, width: int, height: int) -> None:
        """Refuse points that no photo of this size shows, as those of another photo or scale.

        Raises:
            BadImageError: ("bad_landmarks") eyes or mouth lie outside the photo.
        """
        for middle in ((self.left_eye + self.right_eye) / 2, (self.mouth_left + self.mouth_right) / 2):
            if not (-0.5 <= middle[0] <= width - 0.5 and -0.5 <= middle[1] <= height - 0.5):
                raise BadImageError(
                    "bad_landmarks",
                    f"the landmarks lie at {middle[0]:.0f}, {middle[1]:.0f}, outside the {width}x{height} pixels of "
                    "the upright photo: they belong to another photo, or to this one at another size or turned",
                )
        if side_of(self.quad()) > 8 * max(width, height):
            raise BadImageError(
                "bad_landmarks",
                f"the landmarks ask for a square of {side_of(self.quad()):.0f} pixels in a photo of {width}x{height}: "
                "they belong to another photo, or are wrong",
            )

    def is_aligned(self, width: int, height: int) -> bool:
        """Whether the photo is FFHQ's crop already: the square of its face is the photo, within 5 % of the side."""
        whole = np.array([[0, 0], [0, height], [width, height], [width, 0]]) - 0.5
        return bool(np.abs(self.quad() - whole).max() <= ALIGNED_WITHIN * max(width, height))


def side_of(quad: Points) -> float:
    """Side of a square in pixels, from its corners [4, 2]."""
    return float(np.hypot(*(quad[3] - quad[0])))


def crop_face(photo: Image.Image, quad: Points, size: int, *, supersampling: int = 1) -> Image.Image:
    """The square of a photo as an upright picture, as FFHQ's were made.

    Large photos are shrunk first; where the square leaves the photo, the photo goes on mirrored, ever more blurred and
    paler; then bilinear interpolation.

    Args:
        photo: upright, RGB.
        quad: corners of the square [4, 2], from `FacePoints.quad`.
        size: side of the picture in pixels.
        supersampling: interpolate at so many times the size and shrink (Lanczos); 4 at size 1024 is how FFHQ itself
            was made, 1 is how published inversions prepare photos.

    Returns:
        RGB, size x size.
    """
    photo, quad = _shrink(photo, quad, size)
    photo, quad = _cut_out(photo, quad)
    photo, quad = _go_on_beyond(photo, quad)
    large = size * supersampling
    face = photo.transform(
        (large, large), Image.Transform.QUAD, tuple((quad + 0.5).flatten()), Image.Resampling.BILINEAR
    )
    return face if supersampling == 1 else face.resize((size, size), Image.Resampling.LANCZOS)


def paste_face(photo: Image.Image, face: Image.Image, quad: Points, *, feather: float = 0.0) -> Image.Image:
    """A photo with a face put back where it was cut out; outside the square it keeps its pixels.

    It keeps them too, the more the nearer, at an edge of the photo that the square crosses: the crop is blurred there.

    Args:
        photo: the one that was cropped, upright, RGB.
        face: square, of any size.
        quad: corners [4, 2] that the face was cut out with.
        feather: share of the face's side, at each edge, over which it fades into the photo, in [0, 0.5).

    Returns:
        A new photo of the same size.
    """
    if (times := int(face.width / side_of(quad))) > 1:  # interpolating alone would skip pixels of a larger face
        face = face.resize((max(1, round(face.width / times)),) * 2, Image.Resampling.BOX)
    left, top = np.maximum(np.floor(quad.min(axis=0)).astype(int), 0)
    right, bottom = np.minimum(np.ceil(quad.max(axis=0)).astype(int) + 1, photo.size)
    result = np.array(photo)
    if right <= left or bottom <= top:
        return Image.fromarray(result)
    splines = _splines(face)
    for start in range(top, bottom, ROWS_AT_ONCE):  # squares of large photos fill memory otherwise
        columns, rows = np.meshgrid(np.arange(left, right), np.arange(start, min(start + ROWS_AT_ONCE, bottom)))
        at = _place_in_square(columns, rows, quad)
        weight = (_weight(at, feather) * _kept_sharp(columns, rows, quad, photo.size))[..., None]
        window = result[start : start + len(rows), left:right]
        mixed = window + weight * (_interpolated(splines, at) - window)
        window[:] = np.where(weight > 0, np.rint(mixed), window)
    return Image.fromarray(result)


def _place_in_square(columns: Whole, rows: Whole, quad: Points) -> Points:
    """Where pixels lie between the edges of a square, across and down, 0 to 1 inside: [2, h, w]."""
    across, down = quad[3] - quad[0], quad[1] - quad[0]
    offset = np.stack([columns, rows], axis=-1) - quad[0]
    return np.stack([offset @ across, offset @ down]) / side_of(quad) ** 2


def _weight(at: Points, feather: float) -> NDArray[np.float64]:
    """How much a face counts [h, w]: 0 outside its square, rising to 1 without a kink."""
    inside = np.minimum(at, 1 - at).min(axis=0)  # distance to the nearest edge; negative outside
    if feather == 0:
        return np.asarray(inside >= 0, np.float64)
    share: NDArray[np.float64] = np.clip(inside / feather, 0, 1)
    weight: NDArray[np.float64] = share * share * (3 - 2 * share)
    return weight


def _splines(face: Image.Image) -> list[NDArray[np.float32]]:
    """Coefficients of the cubic splines through a face's pixels, for each colour."""
    pixels = np.asarray(face, dtype=np.float32)
    return [scipy.ndimage.spline_filter(pixels[..., c], order=3, output=np.float32, mode="mirror") for c in range(3)]


def _interpolated(splines: list[NDArray[np.float32]], at: Points) -> NDArray[np.float32]:
    """Colours of a face between its pixels, [h, w, 3]; beyond its first and last ones, theirs."""
    last = len(splines[0]) - 1
    places = np.clip(at[::-1] * (last + 1) - 0.5, 0, last)  # rows first
    colours = [scipy.ndimage.map_coordinates(one, places, order=3, mode="mirror", prefilter=False) for one in splines]
    within: NDArray[np.float32] = np.clip(np.stack(colours, axis=-1), 0, 255)
    return within


def _turned(vector: Points) -> Points:
    """A vector turned by 90 degrees: (-y, x)."""
    return np.array([-vector[1], vector[0]])


def _shrink(photo: Image.Image, quad: Points, size: int) -> tuple[Image.Image, Points]:
    """A photo whose square is at least four times too large, by a whole number."""
    times = int(np.floor(side_of(quad) / size * 0.5))
    if times <= 1:
        return photo, quad
    width, height = (max(1, int(np.rint(length / times))) for length in photo.size)
    return photo.resize((width, height), Image.Resampling.LANCZOS), quad / times


def _cut_out(photo: Image.Image, quad: Points) -> tuple[Image.Image, Points]:
    """The part of the photo around the square."""
    border = _border(quad)
    low, high = np.floor(quad.min(axis=0)).astype(int), np.ceil(quad.max(axis=0)).astype(int)
    left, top = np.maximum(low - border, 0)
    right, bottom = np.minimum(high + border, photo.size)
    if right - left < photo.width or bottom - top < photo.height:
        return photo.crop((left, top, right, bottom)), quad - np.array([left, top])
    return photo, quad


def _go_on_beyond(photo: Image.Image, quad: Points) -> tuple[Image.Image, Points]:
    """The photo with more around it, where the square needs that."""
    padding = _padding(quad, photo.size)
    if padding is None:
        return photo, quad
    left, top, right, bottom = padding
    # Mirroring needs more pixels than it adds; very small photos go on with their last one.
    mirrors = max(left, right) < photo.width and max(top, bottom) < photo.height
    pixels = np.pad(
        np.asarray(photo, dtype=np.float32),
        ((top, bottom), (left, right), (0, 0)),
        mode="reflect" if mirrors else "edge",
    )
    height, width = pixels.shape[:2]
    rows, columns = np.ogrid[:height, :width]
    beyond = np.maximum(
        1 - np.minimum(columns / left, (width - 1 - columns) / right),
        1 - np.minimum(rows / top, (height - 1 - rows) / bottom),
    )[..., None].astype(np.float32)  # 0 at the photo's edge, 1 at the far end
    blur = BLUR * side_of(quad)
    pixels += (scipy.ndimage.gaussian_filter(pixels, (blur, blur, 0)) - pixels) * np.clip(3 * beyond + 1, 0, 1)
    pixels += (np.median(pixels, axis=(0, 1)) - pixels) * np.clip(beyond, 0, 1)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)), quad + np.array([left, top])


def _padding(quad: Points, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Pixels to add to a photo of this width and height: left, top, right, bottom; None when the square is inside."""
    border = _border(quad)
    low, high = np.floor(quad.min(axis=0)).astype(int), np.ceil(quad.max(axis=0)).astype(int)
    before, after = np.maximum(border - low, 0), np.maximum(high - size + border, 0)
    if max(before.max(), after.max()) <= border - 4:
        return None
    least = max(1, int(np.rint(PADDING * side_of(quad))))
    (left, top), (right, bottom) = np.maximum(before, least).tolist(), np.maximum(after, least).tolist()
    return left, top, right, bottom


def _kept_sharp(columns: Whole, rows: Whole, quad: Points, size: tuple[int, int]) -> NDArray[np.float64]:
    """How far the crop showed pixels of the photo as they are: 1, or less at an edge beyond which it went on."""
    padding = _padding(quad, size)
    if padding is None:
        return np.ones(columns.shape)
    left, top, right, bottom = padding
    across = np.minimum(columns / left, (size[0] - 1 - columns) / right)
    down = np.minimum(rows / top, (size[1] - 1 - rows) / bottom)
    sharp: NDArray[np.float64] = np.clip(3 * np.minimum(across, down), 0, 1)
    return sharp


def _border(quad: Points) -> int:
    return max(int(np.rint(BORDER * side_of(quad))), LEAST_BORDER)
