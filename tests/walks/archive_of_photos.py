"""Writes the archive of which READMEs and docs speak, with the reader's distribution alone: `archive_of_photos.py URL`.

Twelve images by an encoder and by an optimization, under the names that the examples have. Beside it lie the photos.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from lsap_archive import (
    ArchiveWriter,
    Geometry,
    PlannedRow,
    Preview,
    RunPlan,
    StyleLayers,
    code_arrays,
    noise_arrays,
    trace_arrays,
)

GEOMETRY = Geometry(num_ws=3, w_dim=4, noise_sides=(4, 8))
IDS = ["anna.jpg", "bert.jpg", *(f"test/{number:04d}-0" for number in range(10))]
STEPS, TERMS = (0, 10), ("mse", "sncd")


def main(folder: Path, webp: bytes) -> None:
    """Write archive and photos; every picture is `webp`."""
    rng = np.random.default_rng(0)
    rows = []
    for row, name in enumerate(IDS):
        photo = folder / "photos" / name
        photo.parent.mkdir(parents=True, exist_ok=True)
        photo.write_bytes(f"the photo {name}".encode())
        rows.append(PlannedRow(row, name, photo.as_uri(), hashlib.sha256(photo.read_bytes()).hexdigest()))
    url = str(folder / "archives" / "digits")
    writer = ArchiveWriter.open(url, generator_digest="9f86d081", generator_name="ffhq", geometry=GEOMETRY)
    widths = (4, 4, 2)
    weights = tuple(rng.standard_normal((width, GEOMETRY.w_dim)).astype(np.float32) for width in widths)
    writer.put_style_layers(StyleLayers("9f86d081", weights, tuple(np.ones(width, np.float32) for width in widths)))
    of_optimization = (*noise_arrays(GEOMETRY), *trace_arrays(STEPS, TERMS))
    for method, more in (("lsap_e", ()), ("lsap_o_w_plus", of_optimization)):
        arrays = (*code_arrays(GEOMETRY), *more)
        config = {"settings": {"lr": 0.01}}
        run_id = f"{method}-0123456789abcdef"
        run = writer.start_run(RunPlan(run_id, method, f"digest of {method}", config, {}, tuple(rows), arrays))
        measured = {"status": ["ok"] * len(IDS), "sncd": rng.uniform(0.05, 0.09, len(IDS)), "lpips": [0.2] * len(IDS)}
        values = {
            one.name: rng.standard_normal((len(IDS), *one.item_shape)).astype(one.dtype) for one in run.arrays.values()
        }
        previews = [Preview(row, webp, webp) for row in range(len(IDS))]
        run.write_shard(0, values, pa.table(measured), "first", previews=previews)
        assert run.publish({})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]).read_bytes())
