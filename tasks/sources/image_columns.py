"""Which column of a table holds images, and the bytes in it, as `datasets` of Hugging Face writes tables."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from tasks.errors import BadImageError, SourceError

MAX_ROWS = 10_000_000  # of a file, which can tell of any number
LONGEST_NAME = 4096  # bytes; longer paths are none
# PNG, JPEG, GIF, WebP, BMP, TIFF, PNM, AVIF and HEIC, JPEG 2000, JPEG XL
IMAGE_BEGINNING = re.compile(
    rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP|BM|II\*\0|MM\0\*|P[1-7]\s|....ftyp"
    rb"|\0\0\0\x0c(?:jP  |JXL )|\xff[\x4f\x0a]",
    re.DOTALL,
)


class NoImageColumnError(SourceError):
    """A Parquet file that is no shard of images, but perhaps a manifest or a table beside images."""


class SeveralImageColumnsError(SourceError):
    """A Parquet file of which nobody said which column is meant."""


@dataclass(frozen=True)
class ImageColumn:
    """Where the images of a file are.

    Attributes:
        name: of the column.
        content: dotted path of its bytes.
        path: dotted path of the names that files had, or None.
        note: what is to be told of other columns, "" for nothing.
    """

    name: str
    content: str
    path: str | None
    note: str = ""


def image_column(
    schema: pa.Schema, wanted: str | None, shown: str, begins_as_images: Callable[[ImageColumn], bool]
) -> ImageColumn:
    """The column of images, by its type: {bytes, path}, else bytes that begin as those of images do.

    Where a file says which of its columns are images, as those of `datasets` do, no others are looked at. One with a
    column `uri` is a manifest, unless a column is wanted.

    Args:
        schema: of the file.
        wanted: a name, or None to find it.
        shown: how the file is called in messages.
        begins_as_images: whether the first values of a column may be image files.

    Raises:
        NoImageColumnError: there is none.
        SourceError: there are several and none is wanted, or the wanted one is none of images; or images stand in lists
            or parts of columns alone.
    """
    found = byte_columns(schema)
    told = f"{shown} has the columns {', '.join(f'{field.name} ({_kind_of(field)})' for field in schema)}"
    if wanted is not None:
        if wanted not in found:
            raise SourceError(f"{told}; {wanted!r} was wanted as images, bytes or {{bytes, path}}: name another column")
        return found[wanted]
    declared = [name for name in _declared_images(schema) if name in found]
    structs = [name for name, column in found.items() if column.path is not None]
    names = declared or structs or [name for name, column in found.items() if begins_as_images(column)]
    within = [field.name for field in schema if field.name not in found and _has_images_within(field.type)]
    if within and not names and "uri" not in schema.names:
        raise SourceError(
            f"{told}; images in lists or in parts of columns ({', '.join(within)}) are not read, a column with one "
            "image in each row was wanted: write a row for each image"
        )
    if not names or "uri" in schema.names:
        raise NoImageColumnError(f"{told}; one of images was wanted, bytes or {{bytes, path}}")
    if len(names) > 1:
        raise SeveralImageColumnsError(
            f"{told}; {' and '.join(names)} may all be images, one column was wanted: name it behind the source, as in "
            f"{shown}#{names[0]}"
        )
    note = f"{shown} has images in {', '.join(within)} too, in lists or parts of columns, which are not read"
    return replace(found[names[0]], note=note if within else "")


def byte_columns(schema: pa.Schema) -> dict[str, ImageColumn]:
    """The columns that may hold files, by name."""
    return {field.name: column for field in schema if (column := _as_images(field))}


def _as_images(field: pa.Field) -> ImageColumn | None:
    if _is_bytes(field.type):
        return ImageColumn(field.name, field.name, None)
    if not pa.types.is_struct(field.type):
        return None
    parts = {part.name: part.type for part in field.type}
    if "bytes" not in parts or not _is_bytes(parts["bytes"]):
        return None
    has_path = "path" in parts and (_is_text(parts["path"]) or _is_bytes(parts["path"]))
    return ImageColumn(field.name, f"{field.name}.bytes", f"{field.name}.path" if has_path else None)


def _is_bytes(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_one = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(is_of(kind) for is_of in is_one)


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(is_of(kind) for is_of in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _has_images_within(kind: pa.DataType) -> bool:
    """Whether a type has {bytes, path} somewhere in its lists and parts; as deep as a schema may be."""
    waiting = [kind]
    while waiting:
        one = waiting.pop()
        parts = [one.field(index) for index in range(one.num_fields)]
        names = {part.name: part.type for part in parts}
        if pa.types.is_struct(one) and {"bytes", "path"} <= names.keys() and _is_bytes(names["bytes"]):
            return True
        waiting += [part.type for part in parts]
    return False


def _kind_of(field: pa.Field) -> str:
    kind = str(field.type)
    return kind if len(kind) <= 60 else f"{kind[:57]}..."


def _declared_images(schema: pa.Schema) -> list[str]:
    """Columns that `datasets` calls images in what it writes into the schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [name for name, feature in features.items() if feature["_type"] == "Image"]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return []  # written by something else


def may_be_images(values: Iterable[bytes | int | None]) -> bool:
    """Whether some of the first values of a column begin as image files do, or there is nothing to tell by."""
    known = [value for value in values if isinstance(value, bytes)]
    return not known or any(IMAGE_BEGINNING.match(value) for value in known)


def no_bytes(where: str) -> BadImageError:
    """The problem of a row that names a file and does not hold it."""
    return BadImageError(
        "no_bytes",
        f"{where} has no bytes, those of an image were wanted: the file it names was not put into the table; write it "
        "with its images embedded",
    )


def too_many_bytes(where: str, size: int, limit: int) -> BadImageError:
    """The problem of a row that is not unpacked."""
    return BadImageError("too_large", f"{where} has {size} bytes, at most {limit} were wanted: shrink it")


def values_of(column: pa.Array, limit: int) -> Iterator[bytes | int | None]:
    """Each value of an array of bytes, or of {bytes} alone; the length of one that is longer than a limit."""
    if pa.types.is_struct(column.type):
        column = column.flatten()[0]  # null where the struct is
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.large_binary()).dictionary_encode()
    values = column.dictionary.cast(pa.large_binary())  # also of texts, which may not be UTF-8
    lengths = pc.binary_length(values).to_pylist()
    unpacked: dict[int, bytes] = {}
    for index in column.indices.to_pylist():
        if index is None or lengths[index] is None:
            yield None
        elif lengths[index] > limit:
            yield lengths[index]
        else:
            if index not in unpacked:
                unpacked[index] = values[index].as_py()
            yield unpacked[index]
