"""The published networks that look at faces: MTCNN finds them, CurricularFace tells whose they are."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch

from lsap_core.errors import CheckpointError, MissingWeightsError
from lsap_core.generators.checkpoints import read_records, read_torch
from lsap_core.generators.checkpoints.unpickling import ArrayRecord
from lsap_core.perceptual.curricular_face import FaceIdentity, build_curricular_face
from lsap_core.perceptual.face_detection import DetectorSettings, FaceDetector, build_face_detector
from tasks.weights.published import Published

DETECTOR_FILES = ("pnet.npy", "rnet.npy", "onet.npy")
CURRICULAR_FACE_FILE = "CurricularFace_Backbone.pth"
FACE_IDENTITY_FILES = (*DETECTOR_FILES, CURRICULAR_FACE_FILE)

PUBLISHED = DetectorSettings()


def load_face_detector(published: Published, settings: DetectorSettings = PUBLISHED) -> FaceDetector:
    """MTCNN, frozen, on the CPU.

    Args:
        published: where published networks lie.
        settings: how boldly it finds faces.

    Raises:
        MissingWeightsError: a file is not on this machine; all that are missing are named.
        CheckpointError: a file holds something else.
    """
    paths = find_face_files(published, DETECTOR_FILES, what="the face detector (MTCNN)")
    proposal, refinement, output = (read_npy_weights(path) for path in paths)
    return build_face_detector(proposal, refinement, output, settings=settings)


def load_face_identity(published: Published) -> FaceIdentity:
    """CurricularFace behind MTCNN, frozen, on the CPU.

    Args:
        published: where published networks lie.

    Raises:
        MissingWeightsError: a file is not on this machine; all that are missing are named.
        CheckpointError: a file holds something else.
    """
    *_, backbone = find_face_files(published, FACE_IDENTITY_FILES, what="curricularface")
    detector = load_face_detector(published)
    try:
        with backbone.open("rb") as file:
            return FaceIdentity(detector, build_curricular_face(read_torch(file)))
    except CheckpointError as error:
        raise CheckpointError(f"{backbone}: {error}") from error


def find_face_files(published: Published, files: tuple[str, ...], *, what: str) -> list[Path]:
    """Where published files lie.

    Raises:
        MissingWeightsError: some are not there; nothing is ever downloaded.
    """
    paths = {file: published.find(file) for file in files}
    missing = [file for file, path in paths.items() if path is None]
    if missing:
        raise MissingWeightsError(
            f"{what} needs {', '.join(missing)}, not found in {published}; nothing is downloaded at run "
            f"time: copy the {'file' if len(missing) == 1 else 'files'} there, or name the folder in the variable "
            "LSAP_BACKBONES"
        )
    return [path for path in paths.values() if path is not None]


def read_npy_weights(path: Path) -> dict[str, object]:
    """Tensors by name from a .npy file that holds one dictionary of arrays; nothing in the file is run.

    Raises:
        CheckpointError: it holds something else, is damaged or hostile.
    """
    wanted = "a .npy file with one dictionary of arrays (pnet.npy, rnet.npy, onet.npy of MTCNN)"
    stream = io.BytesIO(path.read_bytes())
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
    except (ValueError, EOFError) as error:
        raise CheckpointError(f"{path} is not {wanted}: {' '.join(str(error).split())[:200]}") from error
    if shape != () or dtype.kind != "O":
        raise CheckpointError(f"{path} holds an array {list(shape)} of {dtype}; wanted {wanted}")
    try:
        record = read_records(stream.read())
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    content = record.content if isinstance(record, ArrayRecord) else None
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, ArrayRecord) and value.array is not None
        for name, value in content.items()
    ):
        raise CheckpointError(f"{path} holds something else than named arrays; wanted {wanted}")
    return {name: torch.from_numpy(value.array.astype(np.float32)) for name, value in content.items()}
