"""A store that answers 5 % of the requests wrongly, slowly or not at all costs time and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.flows.faults.fault_proxy import share_of_requests
from tests.flows.faults.work import Work

pytestmark = [pytest.mark.ray, pytest.mark.object_store, pytest.mark.slow]

SHARE = 0.05  # of each kind
ANSWERED = ("500", "503", "throttled", "too many requests")
CUT = ("slow", "reset before", "reset after", "truncated")


@pytest.mark.parametrize(
    "kinds", [pytest.param(ANSWERED, marks=pytest.mark.all_faults), CUT], ids=["answers", "connections"]
)
def test_a_share_of_the_requests_fails(
    kinds: tuple[str, ...],
    inversion: Work,
    chosen: random.Random,
    how_many: Callable[[int, int], int],
    record: Callable[..., None],
) -> None:
    outcomes = []
    for number in range(how_many(1, 2)):
        url, start = inversion.archive(f"{kinds[0]}-{number}"), len(inversion.bench.proxy.log)
        disturber = share_of_requests(chosen.getrandbits(32), SHARE * len(kinds), kinds)
        with inversion.bench.proxy.disturbing(disturber) as disturbed:
            inversion.finish(url)
        assert disturbed.keys() == set(kinds)
        again, fault = inversion.read_again(start, url), f"S3, each at {SHARE:.0%} of requests: {', '.join(kinds)}"
        outcomes.append(inversion.outcome(fault, 1, url, again, times=disturbed.total()))
    record(outcomes)
