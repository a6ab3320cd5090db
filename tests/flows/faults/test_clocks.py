"""Machines whose clocks are an hour apart: what counts as the newest does not depend on what they show."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from domains.digits.data import load_split
from lsap_archive import open_archive
from tests.flows.faults.outcome import FaultOutcome

pytestmark = [pytest.mark.ray, pytest.mark.object_store, pytest.mark.slow]


def test_clocks_ahead_and_behind(bench: Any, undisturbed: Any, record: Callable[[FaultOutcome], None]) -> None:
    """A machine whose clock is an hour ahead begins, one whose clock is an hour behind goes on."""
    url, embedded = "s3://lsap/faults/skew", []
    for hours, names in ((1, "00[0-1]*.png"), (-1, "*.png")):
        machine = bench.with_variables(CLOCK_AHEAD_HOURS=str(hours))
        finished = machine.invert(url, source=f"{bench.source}/{names}").wait()
        assert finished.code == 0, finished.err
        embedded.append(json.loads(finished.out)["embedded"])
    created = [run.created for run in open_archive(url, storage_options=bench.options).runs]
    assert created == sorted(created, reverse=True), "the clocks were not apart"
    again = sum(embedded) - len(undisturbed.values.rows)
    record(bench.outcome("clocks an hour ahead, then an hour behind", 2, url, undisturbed, again))


def test_the_newest_counts_although_its_clock_is_behind(bench: Any) -> None:
    """An image is replaced; the machine that sees it last is an hour behind the one that saw the old one."""
    files = fsspec.filesystem("s3", **bench.options, use_listings_cache=False)
    pixels = load_split("test").images
    url, source = "s3://lsap/faults/clocks", "s3://lsap/faults/changing"

    def put(row: int) -> None:
        file = io.BytesIO()
        Image.fromarray(pixels[row]).save(file, "PNG")
        files.pipe_file("lsap/faults/changing/image.png", file.getvalue())

    def embedded_by(hours: int) -> int:
        finished = bench.with_variables(CLOCK_AHEAD_HOURS=str(hours)).invert(url, source=source).wait()
        assert finished.code == 0, finished.err
        return int(json.loads(finished.out)["embedded"])

    put(0)
    assert embedded_by(hours=1) == 1
    put(1)
    assert embedded_by(hours=0) == 1
    archive = open_archive(url, storage_options=bench.options)
    created = [run.created for run in archive.runs]
    assert created == sorted(created, reverse=True), "the clocks were not apart"
    rows = archive.rows(["digest", "run_id"]).to_pylist()
    newest = archive.codes(["image.png"], "lsap_e")
    assert rows[0]["digest"] != rows[1]["digest"]
    assert embedded_by(hours=1) == 0, "the old image was taken for the newest"
    put(0)
    assert embedded_by(hours=0) == 1
    last = open_archive(url, storage_options=bench.options).codes(["image.png"], "lsap_e")
    assert not np.array_equal(newest, last)


def test_a_store_that_refuses_this_clock_is_one_sentence(bench: Any) -> None:
    """It often says no more than 403: the answer to a question about an object (HEAD) has no text."""
    with bench.proxy.disturbing(lambda _: "skewed"):
        finished = bench.invert("s3://lsap/faults/skewed").wait()
    assert (finished.code, finished.out) == (1, "")
    (line,) = finished.err.splitlines()
    assert "clock" in line and "s3://lsap/faults" in line
