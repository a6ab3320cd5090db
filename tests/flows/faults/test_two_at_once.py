"""Two commands at once on one archive, which know nothing of each other: the store decides."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.flows.faults.outcome import FaultOutcome

pytestmark = [pytest.mark.ray, pytest.mark.object_store, pytest.mark.slow]


def test_the_same_request_twice_on_two_servers(
    bench: Any, mortal_server: Any, undisturbed: Any, record: Callable[[FaultOutcome], None]
) -> None:
    """Neither server knows of the other, so that nobody waits."""
    url = "s3://lsap/faults/twice"
    commands = [bench.invert(url), bench.against(mortal_server).invert(url)]  # a worker each: there is room for two
    for command in commands:
        finished = command.wait()
        assert finished.code == 0, finished.err
    record(bench.outcome("two runs at once, the same request", 2, url, undisturbed, 0))


def test_overlapping_sources(bench: Any, undisturbed: Any, record: Callable[[FaultOutcome], None]) -> None:
    """One server, which lets the second begin when the first has ended: what both want is embedded once."""
    url = "s3://lsap/faults/overlap"
    first = bench.invert(url, source=f"{bench.source}/00[0-1]*.png")
    deadline = time.monotonic() + 120
    while not bench.store(url).sizes("runs"):  # it has begun to plan; whole shards, so that batches are those of others
        assert not first.has_ended and time.monotonic() < deadline, first.text("err")
        time.sleep(0.02)
    second = bench.invert(url, source=f"{bench.source}/00[1-3]*.png")
    embedded = []
    for command in (first, second):
        finished = command.wait()
        assert finished.code == 0, finished.err
        embedded.append(json.loads(finished.out)["embedded"])
    again = sum(embedded) - len(undisturbed.values.rows)
    record(bench.outcome("two runs at once, overlapping sources", 2, url, undisturbed, again))
