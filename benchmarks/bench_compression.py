"""What does it pay to compress of what an archive keeps: bytes left, and processor seconds both ways?

Chunks as runs keep them: codes of 8 rows of 64 and of 18 rows of 512, and noise maps of 32, 256 and 1024 pixels, as
float32 and as float16. Noise maps are normal numbers, which is what the normalization of a search makes of them. Each
codec takes each chunk in turns, several times, and the fastest turn counts. What `lsap_archive` takes for a type is
marked; checksums, which every codec has beside it, are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measurement import append, environment
from numcodecs import Blosc, Zstd, blosc
from random_generator import random_generator

from lsap_archive import Geometry, code_arrays, noise_arrays
from lsap_archive.format.chunks import compressors, laid_out

CODECS: dict[str, Any] = {
    "zstd 1": Zstd(1),
    "zstd 5": Zstd(5),
    "lz4, bytes": Blosc("lz4", 5, Blosc.SHUFFLE),
    "lz4, bits": Blosc("lz4", 5, Blosc.BITSHUFFLE),
    "zstd 1, bytes": Blosc("zstd", 1, Blosc.SHUFFLE),
    "zstd 1, bits": Blosc("zstd", 1, Blosc.BITSHUFFLE),
    "zstd 5, bytes": Blosc("zstd", 5, Blosc.SHUFFLE),
    "zstd 5, bits": Blosc("zstd", 5, Blosc.BITSHUFFLE),
}
SIDES = (32, 256, 1024)


def chunks(sides: tuple[int, ...]) -> dict[str, np.ndarray]:
    """A chunk of each kind, by name."""
    numbers = np.random.default_rng(0)
    found = {
        "codes 8 x 64": _codes("digits", 32),
        **({"codes 18 x 512": _codes("config_f", 1024)} if 1024 in sides else {}),
    }
    for side in sides:
        arrays = noise_arrays(Geometry(1, 1, (side,)))
        rows = laid_out(arrays, num_rows=512, shard_rows=512)[0].chunk_rows
        maps = numbers.standard_normal((rows, side, side), dtype=np.float32)
        found |= {f"noise {side}, {maps.dtype}": maps, f"noise {side}, float16": maps.astype(np.float16)}
    return found


def _codes(table: str, resolution: int) -> np.ndarray:
    """Codes of 16 images around those that a mapping gives, each row of W+ a little elsewhere."""
    generator = random_generator(table, resolution, "activations", torch.device("cpu"))
    stream = torch.Generator().manual_seed(0)
    z = torch.randn(16, generator.config.z_dim, generator=stream)
    with torch.no_grad():
        w = generator.mapping(z)[:, None]  # [N, 1, D]
    rows = torch.randn(16, generator.config.num_ws, generator.config.w_dim, generator=stream)
    codes: np.ndarray = (w + 0.3 * w.std() * rows).numpy()
    return codes


def chosen_for(values: np.ndarray) -> str:
    """What the archive takes for a type, as it is called here."""
    geometry = Geometry(values.shape[1], values.shape[2], ())
    array = noise_arrays(Geometry(1, 1, (4,)), str(values.dtype)) if values.dtype != "f4" else code_arrays(geometry)
    codec = compressors(laid_out(array, 16, 16)[0])[0].to_dict()["configuration"]
    assert isinstance(codec, dict)
    level = "" if codec["cname"] == "lz4" else f" {codec['clevel']}"
    return f"{codec['cname']}{level}, {'bits' if codec['shuffle'] == 'bitshuffle' else 'bytes'}"


def measure(values: np.ndarray, repeats: int) -> dict[str, dict[str, float]]:
    """Share of bytes left and processor seconds of each codec, which take turns."""
    encoded = {name: codec.encode(values) for name, codec in CODECS.items()}
    for name, codec in CODECS.items():
        if bytes(codec.decode(encoded[name])) != values.tobytes():
            raise RuntimeError(f"{name} does not give back what it took")
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in CODECS}
    for _ in range(repeats):
        for name, codec in CODECS.items():
            forth = _seconds(lambda codec=codec: codec.encode(values))
            back = _seconds(lambda codec=codec, name=name: codec.decode(encoded[name]))
            seconds[name].append((forth, back))
    return {
        name: {
            "left": round(len(encoded[name]) / values.nbytes, 4),
            "encode_seconds": min(forth for forth, _ in seconds[name]),
            "decode_seconds": min(back for _, back in seconds[name]),
        }
        for name in CODECS
    }


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", type=int, default=list(SIDES), help="of noise maps")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, help="file of JSON lines to append to; the screen when not given")
    parser.add_argument("--commit", help="what was measured, where the code lies outside git")
    options = parser.parse_args()
    blosc.use_threads = False
    results = []
    for name, values in chunks(tuple(options.sides)).items():
        chosen, found = chosen_for(values), measure(values, options.repeats)
        print(f"{name}: {values.nbytes:,} bytes")
        for codec, told in found.items():
            rates = (values.nbytes / max(told[f"{way}_seconds"], 1e-9) / 1e6 for way in ("encode", "decode"))
            mark = "  <- the archive's" if codec == chosen else ""
            print("  {:14} {:6.1%} left {:7,.0f} MB/s {:7,.0f} MB/s back{}".format(codec, told["left"], *rates, mark))
        results.append({"chunk": name, "bytes": values.nbytes, "chosen": chosen, "codecs": found})
    result = {
        "benchmark": "compression",
        **environment(torch.device("cpu"), options.commit),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "results": results,
    }
    append(json.dumps(result), options.output)


if __name__ == "__main__":
    main()
