"""What the archive compresses by is among what is measured, and leaves the bytes that dry runs tell."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from lsap_archive import RunArray, expected_bytes

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_codec_of_each_type_leaves_what_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    bench = importlib.import_module("bench_compression")
    monkeypatch.setitem(sys.modules, "bench_compression", bench)
    chunks = bench.chunks((256,))
    assert list(chunks) == ["codes 8 x 64", "noise 256, float32", "noise 256, float16"]
    for name, values in chunks.items():
        left = bench.measure(values, 1)[bench.chosen_for(values)]["left"]
        array = RunArray("array", values.shape[1:], ("y", "x"), dtype=str(values.dtype))
        expected = (expected_bytes([array], 1000) - expected_bytes([], 1000)) / 1000 / values[0].nbytes
        assert left == pytest.approx(expected, abs=0.03), name
