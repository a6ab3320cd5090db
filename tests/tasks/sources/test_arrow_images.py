"""Folders of `save_to_disk` and single Arrow files: images by record batch, on disks and at URLs."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from tasks.errors import BadImageError, SourceError
from tasks.sources.source import SourceItem, open_source

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
Row = tuple[bytes | None, str | None] | None


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSAP_CACHE", str(tmp_path_factory.mktemp("cache")))


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (16, 16), value).save(file, "PNG")
    return file.getvalue()


def arrow_of(*batches: Sequence[Row], make: Any = pa.ipc.new_stream, declared: str = "image") -> bytes:
    told = json.dumps({"info": {"features": {declared: {"_type": "Image"}, "label": {"_type": "Value"}}}})
    schema = pa.schema([("label", pa.int64()), ("image", IMAGE)], metadata={"huggingface": told})
    sink = pa.BufferOutputStream()
    with make(sink, schema) as writer:
        for rows in batches:
            images = [None if row is None else {"bytes": row[0], "path": row[1]} for row in rows]
            writer.write_batch(pa.record_batch([pa.array(range(len(rows))), pa.array(images, IMAGE)], schema=schema))
    data: bytes = sink.getvalue().to_pybytes()
    return data


def saved(shards: Sequence[bytes]) -> dict[str, bytes]:
    """What `save_to_disk` writes, by name."""
    names = [f"data-{index:05d}-of-{len(shards):05d}.arrow" for index in range(len(shards))]
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "x", "_split": "train"}
    return {
        **dict(zip(names, shards, strict=True)),
        "state.json": json.dumps(state).encode(),
        "dataset_info.json": b"{}",
    }


def put(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def contents(spec: str | Path, **options: int) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    with open_source(str(spec), **options) as source:  # type: ignore[arg-type]
        items = list(source.items())
        for item in [*items[1::2], *items[::2]]:  # in no order of theirs
            try:
                found[item.image_id] = source.read(SourceItem(item.image_id, item.uri))  # as a worker does
            except BadImageError as error:
                found[item.image_id] = error.reason
    return found


BATCHES: tuple[Sequence[Row], ...] = (
    [(png(0), "b.png"), (png(1), None)],
    [],
    [(None, "gone.png"), None, (png(2), "b.png")],
)
FOUND = {"b.png": png(0), "x-000001": png(1), "gone.png": "no_bytes", "x-000003": "no_bytes", "b.png#2": png(2)}


@pytest.mark.parametrize("make", [pa.ipc.new_stream, pa.ipc.new_file])
def test_an_arrow_file_gives_an_image_for_each_row(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "x.arrow"
    path.write_bytes(arrow_of(*BATCHES, make=make))
    assert contents(path) == contents(f"{path}#image") == FOUND


def test_a_folder_of_save_to_disk_is_the_files_that_its_state_names(tmp_path: Path) -> None:
    one, other = arrow_of([(png(0), "a.png")]), arrow_of([(png(1), None)])
    files = saved([one, other])
    wanted = {"data-00000-of-00002.arrow/a.png": png(0), "data-00001-of-00002.arrow/data-00001-of-00002-000000": png(1)}
    folder = put(tmp_path / "set", {**files, "cache-0123.arrow": one})  # of a `map`, the same images once more
    assert contents(folder) == wanted
    assert contents(put(tmp_path / "alone", saved([one]))) == {"a.png": png(0)}
    memory = MemoryFileSystem()
    for name, data in files.items():
        memory.pipe(f"/bucket-of-arrow/set/{name}", data)
    assert contents("memory://bucket-of-arrow/set") == wanted
    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(SourceError, match="1 of the 2 shards"):
        contents(folder)


def test_a_state_of_another_program_hides_no_image(tmp_path: Path) -> None:
    folder = put(tmp_path / "in", {"state.json": b"[]", "a.png": png(0), "x.arrow": arrow_of([(png(1), "b.png")])})
    assert contents(folder) == {"a.png": png(0), "x.arrow/b.png": png(1)}


@pytest.mark.parametrize("name", ["../x.arrow", "/etc/x.arrow", "secret.txt"])
def test_a_state_names_files_beside_it_alone(tmp_path: Path, name: str) -> None:
    state = json.dumps({"_data_files": [{"filename": name}]}).encode()
    with pytest.raises(SourceError, match="beside it was wanted"):
        contents(put(tmp_path / "in", {"state.json": state}))


def test_one_batch_is_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    path.write_bytes(arrow_of(*[[(png(number) + bytes(100_000), f"{number:02d}.png")] for number in range(40)]))
    before = pa.total_allocated_bytes()
    with open_source(str(path)) as source:
        for item in source.items():
            assert len(source.read(item)) > 100_000
            assert pa.total_allocated_bytes() - before < 1_000_000


def test_rows_above_the_limit_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    path.write_bytes(arrow_of([(png(0), "a.png"), (bytes(9000), "b.png")]))
    assert contents(path, max_bytes=5000) == {"a.png": png(0), "b.png": "too_large"}


def test_an_arrow_file_cut_short_or_of_something_else_is_a_sentence(tmp_path: Path) -> None:
    whole = arrow_of([(png(0), "a.png")], [(png(1), "b.png")])
    folder = put(tmp_path / "in", {"a.png": png(0)})
    for data in (whole[:-200], b"no arrow file", b"", whole[:16] + b"\xff" * 40 + whole[56:]):
        (folder / "x.arrow").write_bytes(data)
        with pytest.raises(SourceError, match="is not a complete Arrow file"):
            contents(folder / "x.arrow")
        assert contents(folder) == {"a.png": png(0), "x.arrow/unread part": "corrupt"}
    table = pa.BufferOutputStream()
    with pa.ipc.new_stream(table, pa.schema([("label", pa.int64())])):
        pass
    (folder / "x.arrow").write_bytes(table.getvalue().to_pybytes())
    assert contents(folder) == {"a.png": png(0)}


@pytest.mark.parametrize("place", ["image:0+0", "image:99999999+0", "image:{offset}+7", "other:{offset}+0"])
def test_places_from_elsewhere_are_not_read(tmp_path: Path, place: str) -> None:
    path = tmp_path / "x.arrow"
    path.write_bytes(arrow_of([(png(0), "a.png")]))
    with open_source(str(path)) as source:
        (item,) = source.items()
        base, _, own = item.uri.partition("#")
        offset = own.partition(":")[2].partition("+")[0]
        with pytest.raises(BadImageError) as caught:
            source.read(SourceItem("a.png", f"{base}#{place.format(offset=offset)}"))
    assert caught.value.reason == "unreadable"
