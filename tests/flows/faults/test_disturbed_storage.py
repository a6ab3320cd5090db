"""A store that answers 5 % of the requests wrongly, slowly or not at all costs time and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.flows.faults.fault_proxy import share_of_requests
from tests.flows.faults.outcome import FaultOutcome, read_again

pytestmark = [pytest.mark.ray, pytest.mark.object_store, pytest.mark.slow]

SHARE = 0.05  # of each kind
ANSWERED = ("500", "503", "throttled", "too many requests")
CUT = ("slow", "reset before", "reset after", "truncated")


@pytest.mark.parametrize("kinds", [ANSWERED, CUT], ids=["answers", "connections"])
def test_a_share_of_the_requests_fails(
    kinds: tuple[str, ...],
    bench: Any,
    undisturbed: Any,
    fault_seed: int,
    record: Callable[[FaultOutcome], None],
) -> None:
    url, start = f"s3://lsap/faults/{kinds[0]}", len(bench.proxy.log)
    with bench.proxy.disturbing(share_of_requests(fault_seed, SHARE * len(kinds), kinds)) as disturbed:
        finished = bench.invert(url).wait()
    assert finished.code == 0, finished.err
    assert disturbed.keys() == set(kinds)
    again = read_again(bench.proxy.log[start:], "WORKERPROCESS", url, undisturbed.members)
    fault = f"S3, each at {SHARE:.0%} of requests: {', '.join(kinds)}"
    record(bench.outcome(fault, disturbed.total(), url, undisturbed, again))
