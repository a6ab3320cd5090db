"""Directions and components as other programs write them, before they are fitted to a generator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from lsap_core.editing import Components
from lsap_core.editing.style_directions import style_layouts
from lsap_core.errors import CheckpointError, ShapeError
from lsap_core.generators.config import GeneratorConfig
from tasks.weights.plain_arrays import numbers_of

KINDS = "a .safetensors of this project, or an array in a .pt, .npy, .npz or .pkl file"

MEAN_CODES = ("w_avg", "latent_avg", "dlatent_avg", "mean_latent", "mean_w")
CODES = ("w_plus", "latent", "latents", "latent_codes", "codes", "projected_w", "ws", "wp")
"""Names under which programs keep codes; "w" too, but where an intercept stands beside it, it is a boundary's."""

CLIP_CHANNELS = frozenset(sum(style_layouts(GeneratorConfig.config_f(side))[-1][1]) for side in (128, 256, 512, 1024))
"""Rows of StyleCLIP's fs3.npy: the channels of every convolution, 6048 at 1024 pixels."""

_INTERCEPTS = ("b", "bias", "intercept", "intercept_")
_CLIP_WIDTH = 512  # of ViT-B/32, by which StyleCLIP measures
_MOST_NAMES = 12


class ComponentsLayout(NamedTuple):
    """Names under which a program writes components.

    Attributes:
        kind: of the components.
        vectors: the name of [M, D], or [M, 1, D].
        of_columns: whether they are [D, M] instead.
        mean: [D], of "pca".
        deviations: [M], of "pca".
        eigenvalues: [M], of "sefa"; may be missing.
        program: whose layout it is.
    """

    kind: Literal["pca", "sefa"]
    vectors: str
    program: str
    of_columns: bool = False
    mean: str | None = None
    deviations: str | None = None
    eigenvalues: str | None = None

    @property
    def needed(self) -> set[str]:
        """Names without which it is another layout."""
        return {name for name in (self.vectors, self.mean, self.deviations) if name is not None}


COMPONENTS_LAYOUTS = (
    ComponentsLayout("pca", "comp", "GANSpace, as editors pass it on", mean="mean", deviations="std"),
    ComponentsLayout("pca", "lat_comp", "GANSpace's own cache", mean="lat_mean", deviations="lat_stdev"),
    ComponentsLayout("sefa", "eigvec", "closed-form factorization (rosinality)", of_columns=True, eigenvalues="eigval"),
    ComponentsLayout("sefa", "boundaries", "SeFa", eigenvalues="eigen_values"),
)


@dataclass(frozen=True)
class Foreign:
    """A direction as another program wrote it, before a generator says which space it belongs to.

    Attributes:
        name: of the entry, or of the file.
        array: one array, with axes of length 1 still there; None of a list.
        vectors: style vectors, or rows of a code, in a list.
        file_sha256: of the file.
        beside: how many lie in the array of which it is one row; 1 where it is none.
    """

    name: str
    array: Tensor | None
    vectors: tuple[Tensor, ...]
    file_sha256: str
    beside: int = 1

    @property
    def rows(self) -> Tensor:
        """The array as [rows, width].

        Raises:
            ShapeError: it has more axes.
        """
        assert self.array is not None
        shape = [side for side in self.array.shape[:-1] if side != 1]
        if self.array.ndim == 0 or len(shape) > 1:
            raise ShapeError(
                f'"{self.name}" is {list(self.array.shape)}; wanted [D], [1, D], [K, D], [1, K, D] or [1, K * D], or '
                "style vectors in a list; of many in one array name one, FILE#INDEX. Codes of images are no directions"
            )
        return self.array.reshape(-1, self.array.shape[-1])


@dataclass(frozen=True)
class Several:
    """A file of many directions, of which one has to be chosen.

    Attributes:
        entries: by name.
    """

    entries: Mapping[str, Foreign]

    def choose(self, entry: str | None) -> Foreign:
        """The direction of a name.

        Raises:
            CheckpointError: none is named, or there is no such one.
        """
        if entry is not None and entry in self.entries:
            return self.entries[entry]
        names = ", ".join(list(self.entries)[:_MOST_NAMES]) + (", ..." if len(self.entries) > _MOST_NAMES else "")
        missing = "" if entry is None else f', and none is "{entry}"'
        raise CheckpointError(f"it holds {len(self.entries)} directions ({names}){missing}: choose one, as FILE#NAME")


def entries_of(document: Any, name: str, sha256: str) -> Foreign | Several:
    """One direction, or many by name."""
    if not isinstance(document, Mapping):
        return _foreign(document, name, sha256)
    arrays = _without_codes(dict(_arrays_in(document)), document)
    if not arrays:
        names = ", ".join(map(str, list(document)[:4])) or "nothing"
        raise CheckpointError(f"it holds {names}; wanted arrays: {KINDS}")
    if len(arrays) == 1:
        return _foreign(next(iter(arrays.values())), name, sha256)
    if vectors := _numbered(arrays):
        return _foreign(vectors, name, sha256)
    return Several({entry: _foreign(value, entry, sha256) for entry, value in arrays.items()})


def _without_codes(arrays: Mapping[str, Any], document: Mapping[Any, Any]) -> dict[str, Any]:
    """The arrays without what programs keep in the same shapes: codes, their mean, and components of activations.

    Raises:
        CheckpointError: nothing is left.
    """
    codes = {*CODES, *(() if any(name in document for name in _INTERCEPTS) else ("w",))}
    last = {name: name.rsplit(".", 1)[-1] for name in arrays}
    left = {
        name: value
        for name, value in arrays.items()
        if last[name] not in (*MEAN_CODES, *codes) and not last[name].startswith("act_")
    }
    if left or not arrays:
        return left
    name = next(iter(arrays))
    if last[name] in MEAN_CODES:
        raise CheckpointError(f'it holds a mean code ("{name}"), no direction: wanted {KINDS}')
    if last[name] in codes:
        raise CheckpointError(
            f'it holds codes of images ("{name}"), no direction: `lsap archive import` takes them into an archive'
        )
    raise CheckpointError(
        f"it holds GANSpace's components of a layer's activations ({', '.join(list(arrays)[:3])}) and none of codes: "
        "wanted a cache with lat_comp, lat_mean and lat_stdev"
    )


def check_no_clip_effects(found: Foreign, *, num_channels: int | None = None) -> None:
    """Refuse StyleCLIP's fs3.npy as a direction: [channels of S, 512], what each of them does to images in CLIP's eyes.

    Args:
        found: an array, or a row of one.
        num_channels: of all convolutions of the generator; None where it is not known.

    Raises:
        ShapeError: it is such a file, or a row of it.
    """
    count = max(found.beside, len(found.rows))
    if found.rows.shape[1] == _CLIP_WIDTH and count in {*CLIP_CHANNELS, num_channels}:
        raise ShapeError(
            f'"{found.name}" is of [{count}, {_CLIP_WIDTH}], what each of {count} channels of S does to images in CLIP '
            "(StyleCLIP's fs3.npy), and no direction: a text makes one of it, "
            "`lsap direction convert FILE --text TEXT.npy`"
        )


def _arrays_in(document: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Arrays, and lists of them, by name; those of mappings inside by "outer.inner". One number is company of them."""
    found: list[tuple[str, Any]] = []
    for key, value in document.items():
        if isinstance(value, Mapping):
            found += _arrays_in(value, f"{prefix}{key}.")
        elif _is_array(value):
            found.append((f"{prefix}{key}", value))
    return found


def _numbered(arrays: Mapping[str, Any]) -> list[Any] | None:
    """The style vectors that `np.savez(file, *vectors)` wrote as arr_0, arr_1, ...: vectors of several widths."""
    in_order = [f"arr_{index}" for index in range(len(arrays))]
    if set(arrays) != set(in_order):
        return None
    vectors = [arrays[name] for name in in_order]
    are_vectors = all(not isinstance(one, list | tuple) and max(one.shape) == _size(one) for one in vectors)
    return vectors if are_vectors and len({_size(one) for one in vectors}) > 1 else None


def _size(array: Any) -> int:
    return int(array.numel() if isinstance(array, Tensor) else array.size)


def _is_array(value: Any) -> bool:
    return (isinstance(value, np.ndarray | Tensor) and _size(value) > 1) or _is_list_of_arrays(value)


def _is_list_of_arrays(value: Any) -> bool:
    is_list = isinstance(value, list | tuple) and bool(value)
    return is_list and all(isinstance(one, np.ndarray | Tensor) and one.ndim for one in value)


def _foreign(value: Any, name: str, sha256: str) -> Foreign:
    if _is_list_of_arrays(value):
        vectors = tuple(numbers_of(one) for one in value)
        if len(vectors) == 1:
            return Foreign(name, vectors[0], (), sha256)
        if long := [vector for vector in vectors if max(vector.shape) != vector.numel()]:
            raise ShapeError(
                f'"{name}" is a list with an array of {list(long[0].shape)} in it; wanted a style vector for each layer'
            )
        return Foreign(name, None, vectors, sha256)
    if str(getattr(value, "dtype", "")).removeprefix("torch.") in ("uint8", "bool"):
        raise CheckpointError(f'"{name}" is of bytes, as images and masks are, and no direction; wanted real numbers')
    return Foreign(name, numbers_of(value), (), sha256)


def row_of(found: Foreign, entry: str) -> Foreign:
    """A direction of many that lie one under the other in one array, by its index."""
    count = len(found.array) if found.array is not None and found.array.ndim > 1 else 0
    if not entry.isdecimal() or int(entry) >= count:
        wanted = f"an index from 0 to {count - 1}" if count > 1 else "no entry: leave it out"
        raise CheckpointError(f'it holds one array, and "{entry}" was asked for; wanted {wanted}')
    assert found.array is not None
    return Foreign(f"{found.name}_{entry}", found.array[int(entry)], (), found.file_sha256, count)


def foreign_components(document: Mapping[str, Any], sha256: str) -> Components | None:
    """The components of a file in one of `COMPONENTS_LAYOUTS`; None of any other.

    Raises:
        CheckpointError, ShapeError: they cannot be right.
    """
    layout = next((one for one in COMPONENTS_LAYOUTS if one.needed <= set(document)), None)
    return None if layout is None else _components(document, layout, sha256)


def _components(document: Mapping[str, Any], layout: ComponentsLayout, sha256: str) -> Components:
    given = {
        name: numbers_of(document[key]).flatten()
        for name, key in (
            ("mean", layout.mean),
            ("deviations", layout.deviations),
            ("eigenvalues", layout.eigenvalues),
        )
        if key is not None and key in document
    }
    vectors = numbers_of(document[layout.vectors])
    if vectors.ndim < 2:
        raise ShapeError(f"{layout.vectors} is {list(vectors.shape)}; wanted components [M, D] or [M, 1, D]")
    vectors = vectors.T if layout.of_columns and vectors.ndim == 2 else vectors.flatten(1)
    provenance = {"file_sha256": sha256, "layout": layout.program}
    if layout.kind == "pca" and _looks_like_z(given):
        provenance["note"] = "its mean is 0 and its deviations 1, as in Z: GANSpace finds components of W with --use_w"
    return Components(layout.kind, vectors.contiguous(), provenance=provenance, **given)  # type: ignore[arg-type]


def _looks_like_z(given: Mapping[str, Tensor]) -> bool:
    """Whether sampled codes were standard normal."""
    mean, deviations = given["mean"], given["deviations"]
    return bool(mean.abs().max() < 0.02) and bool(((deviations - 1).abs() < 0.1).all())
