"""Two commands at once on one archive, which know nothing of each other: the store decides."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.flows.faults.kill_points import Gate, KillPoint, number_of
from tests.flows.faults.work import PATIENCE_SECONDS, WORKER, Work

pytestmark = [pytest.mark.ray, pytest.mark.object_store, pytest.mark.slow]

HowMany = Callable[[int, int], int]
NUM_SHARDS = 10  # of the undisturbed inversion
HOLD_SECONDS = 30.0  # the longest that a request is held: a client of the store gives up after a minute
TOLD = ("given up", "twice", "retired", "not published")  # what `verify` may add about what the second one began


def ended_beside(
    work: Work, server: Any, url: str, point: KillPoint, first: Mapping[str, Any], second: Mapping[str, Any]
) -> list[Any]:
    """Two commands on two servers, which know nothing of each other; whoever comes to a point first waits there for
    the end of the other."""
    bench, one_has_ended = work.bench, threading.Event()
    commands = [bench.invert(url, **first), bench.against(server).invert(url, **second)]  # a worker each: there is room
    began = time.monotonic()

    def may_go_on() -> bool:
        return one_has_ended.is_set() or time.monotonic() - began > HOLD_SECONDS

    gate = Gate(point, url, may_go_on)
    with bench.proxy.holding(gate):
        while not any(command.has_ended for command in commands) and time.monotonic() - began < PATIENCE_SECONDS:
            time.sleep(0.05)
        one_has_ended.set()
        ended = [bench.commands.ended(command) for command in commands]
    assert gate.has_held, f"nobody came to {point}"
    return ended


def about_runs(work: Work, fewest_shards: int = NUM_SHARDS) -> Work:
    """The same with those of its requests that any run of so many shards has too."""
    requests = [
        request
        for request in work.undisturbed.requests
        if "/runs/" in request.key and (number_of(request.key) or 0) < fewest_shards
    ]
    return Work(work.bench, replace(work.undisturbed, requests=requests))


def check_ended(ended: list[Any]) -> None:
    """Both have done what they were asked for."""
    for finished in ended:
        assert finished.code == 0, finished.err


@pytest.mark.all_faults
def test_the_same_request_twice_on_two_servers(
    inversion: Work, mortal_server: Any, chosen: random.Random, record: Callable[..., None]
) -> None:
    """One waits at a drawn moment until the other has ended."""
    outcomes, ended = [], []
    for number, point in enumerate(about_runs(inversion).draw(5, chosen)):
        url = inversion.archive(f"twice-{number}")
        ended += ended_beside(inversion, mortal_server, url, point, {}, {})
        outcomes.append(inversion.outcome("two servers, the same request", 1, url, 0, may_say=TOLD))
    record(outcomes)
    check_ended(ended)


@pytest.mark.all_faults
def test_one_publishes_while_the_other_stages(
    inversion: Work, mortal_server: Any, chosen: random.Random, how_many: HowMany, record: Callable[..., None]
) -> None:
    """A worker that is about to stage a shard waits until the other command has published all."""
    outcomes, ended = [], []
    staging = [
        request
        for request in inversion.undisturbed.requests
        if request.client == WORKER and request.verb == "PUT" and "/_staging/" in request.key
    ]
    at_staging = Work(inversion.bench, replace(inversion.undisturbed, requests=staging))
    for number, point in enumerate(at_staging.draw_in_shards(how_many(1, 5), chosen)):
        url = inversion.archive(f"staging-{number}")
        ended += ended_beside(inversion, mortal_server, url, point, {}, {})
        outcomes.append(inversion.outcome("two servers, one publishes while the other stages", 1, url, 0, may_say=TOLD))
        left = [key for key in inversion.bench.store(url).sizes("runs") if "/_staging/" in key]
        assert left == [], "the one that lost has left what it staged"
    record(outcomes)
    check_ended(ended)


@pytest.mark.all_faults
def test_two_that_cut_shards_differently(
    inversion: Work, mortal_server: Any, chosen: random.Random, how_many: HowMany, record: Callable[..., None]
) -> None:
    """The same images in shards of 4 and of 8 are two runs; readers see each image once."""
    outcomes, ended = [], []
    for number, point in enumerate(about_runs(inversion, 5).draw(how_many(1, 5), chosen)):
        url = inversion.archive(f"shards-{number}")
        ended += ended_beside(inversion, mortal_server, url, point, {}, {"shard_rows": 8})
        outcomes.append(inversion.outcome("two servers, shards of 4 and of 8", 1, url, 0, may_say=TOLD))
    record(outcomes)
    check_ended(ended)


@pytest.mark.all_faults
def test_overlapping_sources_on_two_servers(
    inversion: Work, mortal_server: Any, chosen: random.Random, record: Callable[..., None]
) -> None:
    """Eight images are in both; whole shards, so that batches are those of others."""
    bench, outcomes, ended = inversion.bench, [], []
    for part, rows in {"first": range(24), "second": range(16, 40)}.items():
        for name in sorted(bench.files.find(bench.source.removeprefix("s3://"))):
            if int(name.rpartition("/")[2][:4]) in rows:
                bench.files.cp_file(name, name.replace("/images/", f"/{part}/"))
    sources = [{"source": f"s3://lsap/faults/{part}"} for part in ("first", "second")]
    for number, point in enumerate(about_runs(inversion, 6).draw(5, chosen)):
        url = inversion.archive(f"apart-{number}")
        ended += ended_beside(inversion, mortal_server, url, point, *sources)
        outcomes.append(inversion.outcome("two servers, overlapping sources", 1, url, 0, may_say=TOLD))
    record(outcomes)
    check_ended(ended)


@pytest.mark.all_faults
def test_overlapping_sources_on_one_server(inversion: Work, record: Callable[..., None]) -> None:
    """It lets the second begin when the first has ended: what both want is embedded once."""
    bench, url = inversion.bench, inversion.archive("overlap")
    first = bench.invert(url, source=f"{bench.source}/00[0-1]*.png")
    deadline = time.monotonic() + 120
    while not bench.store(url).sizes("runs"):  # it has begun to plan; whole shards, so that batches are those of others
        assert not first.has_ended and time.monotonic() < deadline, first.text("err")
        time.sleep(0.02)
    second = bench.invert(url, source=f"{bench.source}/00[1-3]*.png")
    embedded = []
    for command in (first, second):
        finished = bench.commands.ended(command)
        assert finished.code == 0, finished.err
        embedded.append(json.loads(finished.out)["embedded"])
    again = sum(embedded) - len(inversion.undisturbed.values.rows)
    record([inversion.outcome("one server, overlapping sources", 1, url, again)])
