"""What is in a shard and where, made once for each version of it and remembered by this machine."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.errors import BadImageError
from tasks.remembered import put_in_place
from tasks.settings import Settings
from tasks.sources.names import ZIP_GUESS

logger = logging.getLogger(__name__)

_FORMAT = "2"  # of what is remembered
_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("place", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("message", pa.string()),
    ]
)
_AT_ONCE = 4096  # members taken out of a table


@dataclass(frozen=True, slots=True)
class Member:
    """An image of a shard.

    Attributes:
        name: its name in the shard, or one made for it.
        place: where it is there, as its reader understands it.
        problem: why it is not to be opened, or None.
        is_guessed: whether its name is bytes that do not say how they are to be read.
    """

    name: str
    place: str
    problem: BadImageError | None = None
    is_guessed: bool = False

    @classmethod
    def unread_part(cls, message: str) -> Self:
        """What stands for images that cannot be told, because the shard is damaged where they are."""
        return cls("unread part", "0+0", BadImageError("corrupt", message))


@dataclass(frozen=True)
class ShardIndex:
    """The images of a shard.

    Attributes:
        table: name, place, reason and message of each, in the order of the names, which are unique.
        other_files: how many members are no images, by suffix.
        num_hidden: members left out because their name begins with a dot.
        note: what is to be told of the shard: that it is cut short, that names were guessed; "" for nothing.
    """

    table: pa.Table
    other_files: Mapping[str, int]
    num_hidden: int = 0
    note: str = ""

    def __iter__(self) -> Iterator[Member]:
        for batch in self.table.to_batches(_AT_ONCE):
            for name, place, reason, message in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield Member(name, place, None if reason is None else BadImageError(reason, message))


def index_of(
    members: Iterable[Member], other_files: Mapping[str, int], num_hidden: int = 0, note: str = ""
) -> ShardIndex:
    """An index of members as they come.

    Where several have one name, all after the first get "#2", "#3", ... behind it, in the order of the shard.
    """
    guessed = 0

    def counted() -> Iterator[Member]:
        nonlocal guessed
        for member in members:
            guessed += member.is_guessed
            yield member

    table = _table_of(counted())
    if guessed:
        told = f"{guessed} names are no UTF-8 and were read as {ZIP_GUESS.upper()}"
        note = f"{note}; {told}" if note else told
    if pc.count_distinct(table["name"]).as_py() < len(table):
        seen: Counter[str] = Counter()
        names = []
        for name in table["name"].to_pylist():
            seen[name] += 1
            names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
        table = table.set_column(0, _SCHEMA.field("name"), [pa.array(names, pa.string())])
    return ShardIndex(table.sort_by("name"), dict(other_files), num_hidden, note)


def _table_of(members: Iterable[Member]) -> pa.Table:
    batches = []
    columns: dict[str, list[str | None]] = {name: [] for name in _SCHEMA.names}

    def close_batch() -> None:
        batches.append(pa.record_batch({name: pa.array(v, pa.string()) for name, v in columns.items()}, schema=_SCHEMA))
        for values in columns.values():
            values.clear()

    for member in members:
        columns["name"].append(member.name)
        columns["place"].append(member.place)
        columns["reason"].append(member.problem.reason if member.problem else None)
        columns["message"].append(member.problem.message if member.problem else None)
        if len(columns["name"]) >= _AT_ONCE:
            close_batch()
    close_batch()
    return pa.Table.from_batches(batches, _SCHEMA)


def remembered_index(uri: str, version: str | None, make: Callable[[], ShardIndex]) -> ShardIndex:
    """The index of a shard: as this machine remembers it, while the shard's version is the same, or made.

    Args:
        uri: of the shard, with what else the index depends on.
        version: as in a SourceItem; without one nothing is remembered.
        make: reads the shard.
    """
    if version is None:
        return make()
    key = hashlib.sha256("\n".join((_FORMAT, uri, version)).encode("utf-8", "surrogateescape")).hexdigest()
    path = Settings.from_environment().cache_folder / "shards" / f"{key}.parquet"
    try:
        table = pq.read_table(path)
        told = json.loads(table.schema.metadata[b"lsap"])
        return ShardIndex(table.cast(_SCHEMA), dict(told["other_files"]), int(told["num_hidden"]), str(told["note"]))
    except FileNotFoundError:
        pass
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read (%s): it is made anew", path, error)
    index = make()
    try:
        _remember(path, index)
    except OSError as error:
        logger.warning("%s cannot be written (%s): the shard is read again the next time", path, error)
    return index


def _remember(path: Path, index: ShardIndex) -> None:
    told = {"other_files": index.other_files, "num_hidden": index.num_hidden, "note": index.note}
    with put_in_place(path) as file:
        pq.write_table(index.table.replace_schema_metadata({"lsap": json.dumps(told)}), file, compression="zstd")
