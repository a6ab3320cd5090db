"""Clocks that are wrong, and clocks that jump: what counts as the newest does not depend on what they show."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from domains.digits.data import load_split
from lsap_archive import open_archive
from tests.flows.faults.jumping_clock import JumpingClock
from tests.flows.faults.kill_points import Trap
from tests.flows.faults.work import Bench, Work

pytestmark = [pytest.mark.ray, pytest.mark.object_store, pytest.mark.slow]


@pytest.mark.all_faults
def test_clocks_ahead_and_behind(inversion: Work, record: Callable[..., None]) -> None:
    """A machine whose clock is an hour ahead begins, one whose clock is an hour behind goes on."""
    bench, url, embedded = inversion.bench, inversion.archive("skew"), []
    for hours, names in ((1, "00[0-1]*.png"), (-1, "*.png")):
        machine = bench.with_variables(CLOCK_AHEAD_HOURS=str(hours))
        finished = bench.commands.ended(machine.invert(url, source=f"{bench.source}/{names}"))
        assert finished.code == 0, finished.err
        embedded.append(json.loads(finished.out)["embedded"])
    created = [run.created for run in open_archive(url, storage_options=bench.options).runs]
    assert created == sorted(created, reverse=True), "the clocks were not apart"
    again = sum(embedded) - len(inversion.undisturbed.values.rows)
    record([inversion.outcome("clocks an hour ahead, then an hour behind", 2, url, again)])


@pytest.fixture
def jumping(clock: JumpingClock) -> Iterator[JumpingClock]:
    """Right again after the test."""
    yield clock
    clock.reset()


@pytest.mark.all_faults
@pytest.mark.parametrize("work", ["invert", "edit", "evaluate"], indirect=True)
def test_the_clock_jumps(
    work: Work,
    jumping: JumpingClock,
    chosen: random.Random,
    how_many: Callable[[int, int], int],
    record: Callable[..., None],
) -> None:
    """That of the command and its workers, forwards and backwards by up to two hours, while they work."""
    url = work.archive("jumps")
    points = work.draw_in_shards(how_many(2, 4), chosen)
    hours = iter([chosen.choice((1, -1)) * chosen.uniform(0.1, 1) for _ in points])
    trap = Trap(points, url, lambda _: jumping.set(next(hours)), is_deadly=False)
    finished, again = work.finished_under(trap, url)
    assert finished.code == 0, finished.err
    assert not trap.left
    record([work.outcome(f"clock jumps under command and workers, {work.verb}", len(points), url, again)])


@pytest.mark.all_faults
def test_the_newest_counts_although_its_clock_is_behind(bench: Bench) -> None:
    """An image is replaced; the machine that sees it last is an hour behind the one that saw the old one."""
    pixels = load_split("test").images
    url, changing = "s3://lsap/faults/clocks", replace(bench, source="s3://lsap/faults/changing")

    def put(row: int) -> None:
        file = io.BytesIO()
        Image.fromarray(pixels[row]).save(file, "PNG")
        bench.files.pipe_file("lsap/faults/changing/image.png", file.getvalue())

    def embedded_by(hours: int) -> int:
        finished = changing.with_variables(CLOCK_AHEAD_HOURS=str(hours)).invert(url).wait()
        assert finished.code == 0, finished.err
        return int(json.loads(finished.out)["embedded"])

    put(0)
    assert embedded_by(hours=1) == 1
    put(1)
    assert embedded_by(hours=0) == 1
    archive = open_archive(url, storage_options=bench.options)
    created = [run.created for run in archive.runs]
    assert created == sorted(created, reverse=True), "the clocks were not apart"
    rows = archive.rows(["digest", "run_id"], history=True).to_pylist()
    newest = archive.codes(["image.png"], "lsap_e")
    assert rows[0]["digest"] != rows[1]["digest"]
    assert embedded_by(hours=1) == 0, "the old image was taken for the newest"
    put(0)
    assert embedded_by(hours=0) == 1
    last = open_archive(url, storage_options=bench.options).codes(["image.png"], "lsap_e")
    assert not np.array_equal(newest, last)


def test_a_store_that_refuses_this_clock_is_one_sentence(bench: Bench) -> None:
    """It often says no more than 403: the answer to a question about an object (HEAD) has no text."""
    with bench.proxy.disturbing(lambda _: "skewed"):
        finished = bench.invert("s3://lsap/faults/skewed").wait()
    assert (finished.code, finished.out) == (1, "")
    begun, line = finished.err.splitlines()
    assert begun.startswith("INFO lsap: checking ")
    assert "clock" in line and "s3://lsap/faults" in line
