"""Data sets as they are shipped, inverted: rows with reasons, nothing embedded twice, packed anew nothing anew."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


def tar_of(laboratory: Any, numbers: list[int]) -> bytes:
    """Pictures with a label each, and a link."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number in numbers:
            for name, data in ((f"{number}.png", laboratory.picture(number)), (f"{number}.cls", b"1")):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "0.png"
        tar.addfile(link)
    return file.getvalue()


def parquet_of(laboratory: Any, numbers: list[int]) -> bytes:
    """Pictures in this order, and a row without one."""
    rows = [{"bytes": laboratory.picture(number), "path": f"{number}.png"} for number in numbers]
    rows.append({"bytes": None, "path": "link.png"})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    file = io.BytesIO()
    pq.write_table(pa.table({"image": pa.array(rows, kind)}), file, row_group_size=2)
    return file.getvalue()


def rows_of(archive: Any) -> dict[str, tuple[str, str | None]]:
    found = archive.sql("select image_id, status, reason from rows order by image_id")
    return {row["image_id"]: (row["status"], row["reason"]) for row in found.to_pylist()}


@pytest.mark.parametrize(("kind", "reason"), [("tar", "unsafe_name"), ("parquet", "no_bytes")])
def test_shards_are_inverted_image_by_image(laboratory: Any, kind: str, reason: str) -> None:
    make = {"tar": tar_of, "parquet": parquet_of}[kind]
    laboratory.put(f"0.{kind}", make(laboratory, [3, 0, 2]))
    laboratory.put(f"1.{kind}", make(laboratory, [5, 4]))
    expected = {f"0.{kind}/{number}.png": ("ok", None) for number in (0, 2, 3)}
    expected |= {f"1.{kind}/{number}.png": ("ok", None) for number in (4, 5)}
    bad = {f"{shard}.{kind}/link.png": ("failed", reason) for shard in (0, 1)}
    archive = laboratory.invert(shard_rows=3)
    assert rows_of(archive) == expected | bad
    assert laboratory.prepare().shards == ()  # nothing is left
    laboratory.put(f"1.{kind}", make(laboratory, [4, 6, 5]))  # packed anew, with one more
    planned = laboratory.prepare()
    assert sum(shard.num_images for shard in planned.shards) == 1
    laboratory.embed(planned)
    assert rows_of(laboratory.publish(planned)) == expected | bad | {f"1.{kind}/6.png": ("ok", None)}
