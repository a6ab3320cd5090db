"""Where the surest face of a picture has its five points, found once for all that want to know."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from lsap_core.images import as_rgb
from lsap_core.perceptual.face_detection import FaceDetector, surest_points
from tasks.measuring.looks import Look, Looks
from tasks.weights.faces import DETECTOR_FILES, find_face_files, load_face_detector
from tasks.weights.networks import digest_of_file
from tasks.weights.published import Published


class FacePoints:
    """Five points of the surest face, by one detector.

    Attributes:
        detector: on a device.
        look: its name and digest.
    """

    def __init__(self, detector: FaceDetector, digest: str):
        self.detector = detector
        self.look = Look("points of a face", digest)

    @classmethod
    def load(cls, published: Published, device: torch.device) -> FacePoints:
        """By MTCNN as the published identity scores run it.

        Raises:
            MissingWeightsError: a file is not on this machine.
            CheckpointError: a file holds something else.
        """
        detector = load_face_detector(published).to(device)
        files = find_face_files(published, DETECTOR_FILES, what="the face detector (MTCNN)")
        facts = [*map(digest_of_file, files), repr(detector.settings)]
        return cls(detector, hashlib.sha256("".join(facts).encode()).hexdigest()[:16])

    def find(self, images: Tensor) -> Tensor:
        """Points of images [N, C, H, W]: [N, 5, 2] in pixels, float64, on the CPU; NaN without a face."""
        return surest_points(self.detector.detect(as_rgb(images)))

    def find_in(self, looks: Looks) -> Tensor:
        """Points of pictures, unless they are known already."""
        return looks.of(self.look, self.find)
