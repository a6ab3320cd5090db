"""Why a worker is gone: memory is named when it was that, and Ray's own advice is left out."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError, RayError

from tasks.errors import LESS_MEMORY
from tasks.workers.deaths import cause_of_death, is_for_memory

# As Ray 2.60 words it.
OUT_OF_MEMORY = """\
1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, ID: 55dd2a5) was \
22.41GB used / 23.54GB limit (0.952)
OOM kill reason: Memory usage exceeded threshold
Set max_restarts and max_task_retries to enable retry when the task crashes due to OOM.
"""
DIED = """\
The actor died unexpectedly before finishing this task.
\tpid: 21855
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was killed \
by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed.
"""
ADVICE = LESS_MEMORY


def died(text: str) -> RayError:
    return RayActorError(error_msg=text)


@pytest.mark.parametrize(
    ("error", "has_killed", "told"),
    [
        (OutOfMemoryError(OUT_OF_MEMORY), False, "its machine ran out of memory (22.41GB of 23.54GB were in use): "),
        (OutOfMemoryError("other words"), False, "its machine ran out of memory: "),
        (died(DIED), True, "the system killed it, as it does where memory runs out: "),
    ],
)
def test_memory_is_named_when_it_was_memory(error: RayError, has_killed: bool, told: str) -> None:
    cause = cause_of_death(error, has_killed_for_memory=has_killed)
    assert cause.startswith(told + ADVICE) and "max_restarts" not in cause
    assert is_for_memory(error, has_killed_for_memory=has_killed)


@pytest.mark.parametrize(
    ("error", "has_killed", "told"),
    [
        (died(DIED), False, "Worker unexpectedly exits with a connection error code 2. End of file."),
        (died("Worker exit detail: Worker exits with an exit code 7."), True, "Worker exits with an exit code 7."),
        (ActorDiedError(), True, "The actor died unexpectedly before finishing this task."),
    ],
)
def test_what_else_it_was_is_one_line_and_names_no_memory(error: RayError, has_killed: bool, told: str) -> None:
    assert cause_of_death(error, has_killed_for_memory=has_killed) == told
    assert not is_for_memory(error, has_killed_for_memory=has_killed)
