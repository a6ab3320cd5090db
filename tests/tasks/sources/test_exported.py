"""Pictures that an archive exports are a source like any other: they can be inverted again."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from lsap_archive import ArchiveWriter, Geometry, PlannedRow, Preview, RunPlan, code_arrays
from lsap_archive.commands.command import main
from tasks.sources.source import open_source


@pytest.mark.parametrize(
    ("form", "address", "picture"),
    [("datasets", "{out}#original", 0), ("datasets", "{out}#image", 1), ("webdataset", "{out}", 1)],
)
def test_pictures_of_an_export_are_read(tmp_path: Path, form: str, address: str, picture: int) -> None:
    geometry = Geometry(num_ws=2, w_dim=3, noise_sides=())
    url, out = str(tmp_path / "archive"), str(tmp_path / "out")
    writer = ArchiveWriter.open(url, generator_digest="9f", generator_name="tiny", geometry=geometry)
    run = writer.start_run(
        RunPlan("run", "lsap_e", "4a", {}, {}, (PlannedRow(0, "a/b.c.png", "/a.png", "d0"),), code_arrays(geometry))
    )
    pictures = [webp(0), webp(1)]
    codes = {"w_plus": np.ones((1, 2, 3), np.float32)}
    previews = [Preview(0, pictures[1], pictures[0])]
    assert run.write_shard(0, codes, pa.table({"status": ["ok"]}), "first", previews=previews) and run.publish({})
    assert main(["export", url, out, "--format", form, "--pictures"]) == 0
    with open_source(address.format(out=out)) as source:
        read = [source.read(item) for item in source.items()]
    assert pictures[picture] in read and len(read) == (1 if "#" in address else 2)


def webp(level: int) -> bytes:
    sink = io.BytesIO()
    Image.new("L", (4, 4), level).save(sink, "WEBP", lossless=True)
    return sink.getvalue()
