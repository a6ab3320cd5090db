"""Arrays that others made with CLIP: effects of channels (StyleCLIP's fs3.npy), and differences of texts."""

from __future__ import annotations

from torch import Tensor

from lsap_core.errors import CheckpointError, LsapError, ShapeError
from tasks.weights.files import read_bytes
from tasks.weights.plain_arrays import file_digest, numbers_of, read_document

KINDS = "an array in a .npy, .npz or .pt file"


def read_clip_array(path_or_url: str, *, num_axes: int) -> tuple[Tensor, str]:
    """The one array of a file, and the file's SHA-256.

    Args:
        path_or_url: of the file.
        num_axes: 2 for effects [C, E], 1 for a text [E] or [1, E].

    Raises:
        CheckpointError: no such file, or not one array in it.
        ShapeError: one of other axes.
    """
    data = read_bytes(path_or_url, None, wanted=KINDS)
    wanted = "effects [channels, 512]" if num_axes == 2 else "a text's direction [512]"
    try:
        document = read_document(data, wanted=KINDS)
        if isinstance(document, dict) and len(document) == 1:
            (document,) = document.values()
        if not hasattr(document, "shape"):
            raise CheckpointError(f"it does not hold one array; wanted {wanted}")
        array = numbers_of(document)
        array = array.squeeze(0) if num_axes == 1 and array.ndim == 2 else array
        if array.ndim != num_axes:
            raise ShapeError(f"it holds {list(document.shape)}; wanted {wanted}")
    except LsapError as error:
        raise type(error)(f"{path_or_url}: {error}") from error
    return array, file_digest(data)
