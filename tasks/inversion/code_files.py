"""Codes that other programs have found, as their files hold them."""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import torch
from torch import Tensor

from lsap_archive import open_file_system, storage_errors
from lsap_core.errors import CheckpointError, LsapError, ShapeError
from lsap_core.generators.config import GeneratorConfig
from tasks.errors import BadImageError
from tasks.sources.items import check_name
from tasks.weights.files import read_bytes
from tasks.weights.plain_arrays import map_document, numbers_of

KINDS = "codes in a .npz, .npy, .pt or .safetensors file, a folder of such files, or a .csv that names them"
SUFFIXES = (".npz", ".npy", ".pt", ".pth", ".safetensors")
CodeSpace = Literal["w", "w_plus"]

OF_CODES = ("w", "w_plus", "latent", "latents", "latent_codes", "codes", "projected_w", "ws", "wp")
"""Names under which programs keep codes beside other things: "w" NVlabs' projector, "latent" rosinality's."""


@dataclass(frozen=True)
class CodeFile:
    """A file of codes.

    Attributes:
        path: or URL.
        image_id: of the image whose code it holds, where a manifest says it.
    """

    path: str
    image_id: str | None = None


@dataclass(frozen=True)
class FoundCodes:
    """The codes of one file.

    Attributes:
        w_plus: [N, K, D], float32; codes of W stand in every row. Of a large file on this machine, a view of it.
        names: of the images where the file tells them, else None.
        space: of the file's codes.
        sha256: of the file.
        left_out: what else of the file says how images look, such as noise maps, and is not taken.
    """

    w_plus: Tensor
    names: tuple[str, ...] | None
    space: CodeSpace
    sha256: str
    left_out: tuple[str, ...] = ()


def read_codes(path_or_url: str, config: GeneratorConfig, *, space: CodeSpace | None = None) -> FoundCodes:
    """The codes of a file: one or many, of W or W+.

    Args:
        path_or_url: with one array [D], [N, D], [N, 1, D], [K, D], [N, K, D] or [N, K * D]; or with many by the names
            of their images; beside other things under one of `OF_CODES`.
        config: sizes of the generator.
        space: of the codes; needed where K codes of W and one of W+ have the same shape, and no name says that it is
            one.

    Raises:
        CheckpointError: no such file, or no codes in it.
        ShapeError: they do not fit the generator, or may be of both spaces.
    """
    try:
        document, digest = map_document(path_or_url, wanted=KINDS)
        named = list(_named_arrays(document))
        left_out = sorted({key for key in _keys_of(document) if key.startswith("noise")})
        if not named:
            raise CheckpointError(f"it holds no codes; wanted {KINDS}")
        found = [(name, *_fitted(name, numbers_of(values), config, space)) for name, values in named]
    except LsapError as error:
        raise type(error)(f"{path_or_url}: {error}") from error
    spaces = {one_space for _, _, one_space in found}
    codes = found[0][1] if len(found) == 1 else torch.cat([one for _, one, _ in found])
    names = None
    if all(name is not None and len(one) == 1 for name, one, _ in found):
        names = tuple(str(name) for name, _, _ in found)
    return FoundCodes(codes, names, "w" if spaces == {"w"} else "w_plus", digest, ("noise maps",) if left_out else ())


def find_code_files(paths: Sequence[str]) -> list[CodeFile]:
    """The files of codes that are meant: folders are searched to their depth, by name, and manifests followed.

    Args:
        paths: paths or URLs: files of codes; folders of them, such as PTI's `embeddings` or one `projected_w.npz` for
            each image; or a .csv with the columns image_id and codes, a file each, relative to the manifest.

    Raises:
        CheckpointError: a folder without codes, or a manifest that is none.
    """
    found: list[CodeFile] = []
    for path in paths:
        if path.lower().endswith(".csv"):
            found += _in_manifest(path)
            continue
        filesystem, place = open_file_system(path)
        with storage_errors("read", path):
            if not filesystem.isdir(place):
                found.append(CodeFile(path))
                continue
            inside = sorted(filesystem.find(place))
        there = [posixpath.relpath(one, place) for one in inside if one.lower().endswith(SUFFIXES)]
        if not there:
            raise CheckpointError(f"{path} is a folder without {KINDS}")
        found += [CodeFile(posixpath.join(path, one)) for one in there]
    return found


def _in_manifest(path: str) -> list[CodeFile]:
    try:
        lines = list(csv.DictReader(io.StringIO(read_bytes(path, None, wanted=KINDS).decode("utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise CheckpointError(f"{path} is no CSV in UTF-8 ({error}); wanted the columns image_id and codes") from error
    if not lines or not all(line.get("image_id") and line.get("codes") for line in lines):
        columns = ", ".join(map(str, lines[0])) if lines else "no line"
        raise CheckpointError(f"{path} has {columns}, or empty cells; wanted the columns image_id and codes, filled")
    folder = posixpath.dirname(path)
    return [CodeFile(posixpath.join(folder, line["codes"]), line["image_id"]) for line in lines]


def names_of_files(paths: Sequence[str]) -> list[str]:
    """A name for each file that tells none of its images: its own, with as many folders as tell it from the others.

    Example:
        >>> names_of_files(["out/a/projected_w.npz", "out/b/projected_w.npz"])
        ['a/projected_w', 'b/projected_w']
    """
    parts = [(*PurePosixPath(path).parts[:-1], PurePosixPath(path).stem) for path in paths]
    names = []
    for part in parts:
        alike = [other for other in parts if other[-1] == part[-1]]
        depth = 1
        while depth < len(part) and sum(other[-depth:] == part[-depth:] for other in alike) > 1:
            depth += 1
        names.append(posixpath.join(*part[-depth:]).lstrip("/"))
    return names


def check_ids(image_ids: Sequence[str]) -> None:
    """Refuse names of images that no archive can keep.

    Raises:
        CheckpointError: one is empty, leads out of a folder, or stands there twice.
    """
    seen: set[str] = set()
    for image_id in image_ids:
        problem: BadImageError | None = check_name(image_id, "image id")
        if not image_id or problem is not None:
            raise CheckpointError(str(problem or "an image id is empty; give every code one"))
        if image_id in seen:
            raise CheckpointError(
                f"two codes have the image id {image_id!r}: one id has to mean one image, give others"
            )
        seen.add(image_id)


def _named_arrays(document: Any) -> Iterator[tuple[str | None, Any]]:
    """Arrays of codes with the names of their images, None where the file tells none."""
    if not isinstance(document, Mapping):
        yield None, torch.stack(list(document)) if _is_list_of_tensors(document) else document
        return
    for key in OF_CODES:
        if key in document and not isinstance(document[key], Mapping):
            yield None, document[key]
            return
    for key, value in document.items():
        if isinstance(value, Mapping):
            inner = next((value[name] for name in OF_CODES if name in value), None)
            if inner is not None:
                yield str(key), inner
            elif key in OF_CODES:
                yield from _named_arrays(value)
        elif hasattr(value, "shape") and len(value.shape):
            yield (None if len(document) == 1 else str(key)), value


def _keys_of(document: Any) -> Iterator[str]:
    if isinstance(document, Mapping):
        for key, value in document.items():
            yield str(key)
            if isinstance(value, Mapping):
                yield from map(str, value)


def _is_list_of_tensors(document: Any) -> bool:
    return (
        isinstance(document, list | tuple)
        and bool(document)
        and all(isinstance(one, Tensor) and one.shape == document[0].shape for one in document)
    )


def _fitted(
    name: str | None, values: Tensor, config: GeneratorConfig, space: CodeSpace | None
) -> tuple[Tensor, CodeSpace]:
    """Codes [N, K, D], and the space that they are of."""
    num_ws, w_dim = config.num_ws, config.w_dim
    shape = list(values.shape)
    what = "codes" if name is None else f'the code of "{name}"'
    if shape == [num_ws, w_dim] and space is None and name is None and not _is_one_code_of(values):
        raise ShapeError(
            f"{what} [{num_ws}, {w_dim}] may be one of W+, or {num_ws} of W: say which, --space w_plus or --space w"
        )
    as_w_plus = {
        1: shape == [num_ws * w_dim],
        2: shape == [num_ws, w_dim] or shape[-1] == num_ws * w_dim,
        3: shape[1:] == [num_ws, w_dim],
        4: shape[1:] == [1, num_ws, w_dim],
    }
    as_w = {
        1: shape == [w_dim],
        2: shape[-1] == w_dim,
        3: shape[1:] == [1, w_dim],
    }
    if as_w_plus.get(values.ndim, False) and space != "w":
        return values.reshape(-1, num_ws, w_dim), "w_plus"
    if as_w.get(values.ndim, False) and space != "w_plus":
        return values.reshape(-1, 1, w_dim).expand(-1, num_ws, -1), "w"
    raise ShapeError(
        f"{what} {shape} {'are' if name is None else 'is'} none of this generator; wanted W [N, {w_dim}] or W+ "
        f"[N, {num_ws}, {w_dim}]" + ("" if space is None else f", and of {space} as it was said")
    )


def _is_one_code_of(values: Tensor) -> bool:
    """Whether rows are all alike, so that it is one code of W that was repeated."""
    return bool((values == values[:1]).all())
