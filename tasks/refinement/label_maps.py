"""Segments of images from files: label maps in a folder, named like the images."""

from __future__ import annotations

import posixpath

import numpy as np
import torch
from torch import Tensor

from lsap_archive import (
    ArchiveMismatchError,
    ArchiveNotFoundError,
    open_file_system,
    refuse_special_file,
    storage_errors,
)
from tasks.errors import BadImageError
from tasks.pictures.decoding import decode_labels
from tasks.sources.items import IMAGE_SUFFIXES, check_name

NO_SEGMENTS = "no_segments"
DO_NOT_FIT = "segments_do_not_fit"


class LabelMaps:
    """A folder of label maps: that of the image "a/b.jpg" is "a/b.png".

    Attributes:
        folder: its path or URL.
    """

    def __init__(self, folder: str):
        self.folder = folder
        self._files, self._root = open_file_system(folder)

    def read(self, image_id: str, size: tuple[int, int]) -> Tensor:
        """Labels [h, w], int64, of an image.

        Args:
            image_id: of the image.
            size: height and width of its segments.

        Raises:
            BadImageError: there is no map of it, or none of its size.
            StoreUnavailableError: the storage does not answer.
        """
        if (problem := check_name(image_id, "image_id")) is not None:
            raise problem
        stem, suffix = posixpath.splitext(image_id)
        name = f"{stem if suffix.lower() in IMAGE_SUFFIXES else image_id}.png"
        place = f"{self.folder}/{name}"
        try:
            labels = decode_labels(self._read(name, place), size=size)
        except ArchiveNotFoundError:
            raise BadImageError(
                NO_SEGMENTS, f"{image_id} has no label map, wanted {place}: put it there, or choose another segmenter"
            ) from None
        except ArchiveMismatchError as error:
            raise BadImageError("segments_unreadable", str(error)) from None
        except BadImageError as error:
            reason = DO_NOT_FIT if error.reason == "wrong_aspect" else f"segments_{error.reason}"
            raise BadImageError(reason, f"{place}: {error.message}") from error
        return torch.from_numpy(np.ascontiguousarray(labels))

    def _read(self, name: str, place: str) -> bytes:
        path = f"{self._root}/{name}"
        refuse_special_file(self._files, path)
        with storage_errors("read", place):
            data: bytes = self._files.cat_file(path)
        return data
