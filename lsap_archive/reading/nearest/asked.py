"""What may be asked about: images of the archive, files of codes, pictures whose content an image has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lsap_archive.errors import ArchiveMismatchError
from lsap_archive.format.documents import sha256_of
from lsap_archive.reading.archive import Archive
from lsap_archive.reading.nearest.answers import about_answer
from lsap_archive.reading.nearest.spaces import Metric, Space


def ask_nearest(
    archive: Archive,
    image_ids: Sequence[str],
    codes: Mapping[str, NDArray[Any]],
    k: int,
    method: str,
    *,
    space: Space,
    metric: Metric,
    approximate: bool,
) -> pa.Table:
    """Nearest codes to those of images and to others, for whoever asks once: nothing stays in memory for one code.

    Args:
        archive: that is asked.
        image_ids: images of it.
        codes: [K, D] or [D], by what they are called.
        k: as in `Archive.nearest`, like all that follows.
        method: whose codes, also of the images.
        space: what is compared.
        metric: how.
        approximate: whether an index is asked.

    Returns:
        As `Archive.nearest`; where several are asked about, with their names in the column `query`.

    Raises:
        ArchiveMismatchError: nothing is asked about, or a code has another shape.
        ArchiveKeyError, ArchiveNotFoundError, CorruptArchiveError: as `Archive.nearest`.
    """
    wanted = (archive.geometry.num_ws, archive.geometry.w_dim)
    targets = list(archive.codes(image_ids, method)) if image_ids else []
    for name, code in codes.items():
        if code.shape not in (wanted, wanted[1:]):
            raise ArchiveMismatchError(f"{name} is {code.shape}: {wanted} or {wanted[1:]} is wanted")
        targets.append(np.broadcast_to(code, wanted))
    if not targets:
        raise ArchiveMismatchError("nothing is asked about: name images (--image), codes (--code) or pictures")
    answer = archive.nearest(
        np.stack(targets), k, method, space=space, metric=metric, approximate=approximate, stay=len(targets) > 1
    )
    if len(targets) == 1:
        return answer.drop_columns("query")
    names = pa.array([*image_ids, *codes], pa.string())
    return answer.set_column(0, "query", names.take(answer.column("query").combine_chunks()))


def notes_of_answer(answer: pa.Table) -> list[str]:
    """What to tell whoever reads an answer, a sentence each: that it is approximate, that codes found no room."""
    about = about_answer(answer)
    told = [f"approximate: the index finds {about['recall']:.1%} of the 10 nearest"] if "recall" in about else []
    return [*told, *([about["note"]] if "note" in about else [])]


def image_of_picture(archive: Archive, place: str, method: str) -> str | None:
    """The id of the image of a method that has the content of a file; None where there is none.

    Raises:
        ArchiveMismatchError: there is no such file.
    """
    try:
        digest = sha256_of(Path(place).read_bytes())
    except OSError as error:
        raise ArchiveMismatchError(f"{place} cannot be read ({error.strerror}): name the file of a picture") from error
    methods = sorted({run.method for run in archive.runs if method in (run.method, run.method_digest)})
    found = archive.sql(
        "select image_id from latest where digest = $digest and list_contains($methods, method) "
        "and status in ('ok', 'duplicate') order by image_id limit 1",
        digest=digest,
        methods=methods,
    )
    return found.column("image_id")[0].as_py() if found.num_rows else None


def read_code(place: str) -> NDArray[Any]:
    """The numbers in an .npy file, of any shape.

    Raises:
        ArchiveMismatchError: there is no such file, or it holds something else.
    """
    wanted = "wanted an .npy file with the numbers of one code"
    try:
        loaded = np.load(place, allow_pickle=False)
    except FileNotFoundError:
        raise ArchiveMismatchError(f"{place} does not exist; {wanted}") from None
    except (ValueError, EOFError) as error:
        raise ArchiveMismatchError(f"{place} is no such file; {wanted}") from error
    if not isinstance(loaded, np.ndarray) or loaded.dtype.kind not in "iuf":
        raise ArchiveMismatchError(f"{place} holds something else; {wanted}")
    return loaded
