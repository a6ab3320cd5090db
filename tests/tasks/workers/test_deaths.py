"""Why a worker is gone: memory is named when it was that, and Ray's own advice is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError, RayError

from flows.commands.exit_codes import told as failure_told
from flows.running.outcome import unfinished
from tasks.errors import LESS_MEMORY
from tasks.machine_memory import num_killed_for_memory
from tasks.workers.deaths import cause_of_death, is_for_memory

# As Ray 2.60 words it.
OUT_OF_MEMORY = """\
1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, ID: 55dd2a5) was \
22.41GB used / 23.54GB limit (0.952)
OOM kill reason: Memory usage 24060000000B exceeded threshold of 24012190720B (95.0% of 25275990016B limit)
Selected to kill: (Task: job ID=01000000, task name=Host.call, required resources={CPU: 1}, pid=27870, actual memory \
used=9.10GB, worker ID=8afc56)
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
FIGURES = (
    "its machine ran out of memory (22.41GB of 23.54GB were in use, workers are ended above 95 %, this one held "
    "9.10GB): "
)
KILLED = "the system killed it, as it does where memory runs out (the machine has 24.0 GiB): "


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.workers.deaths.memory_of_machine", lambda: 24 * 2**30)


def died(text: str) -> RayError:
    return RayActorError(error_msg=text)


@pytest.mark.parametrize(
    ("error", "has_killed", "told"),
    [
        (OutOfMemoryError(OUT_OF_MEMORY), False, FIGURES),
        (OutOfMemoryError("other words"), False, "its machine ran out of memory: "),
        (died(DIED), True, KILLED),
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


def test_a_worker_that_the_system_killed_is_told_with_what_it_held_and_what_there_is_for_each() -> None:
    told = cause_of_death(died(DIED), has_killed_for_memory=True, held_bytes=9 * 2**30, num_workers=4)
    assert "it held 9.0 GiB when last looked at, and the machine has 24.0 GiB, 6.0 GiB for each of 4 workers" in told


def test_the_last_sentence_of_a_command_has_the_figures_too() -> None:
    problem = f"shard 3 of psp-1: the process of a worker died: {cause_of_death(OutOfMemoryError(OUT_OF_MEMORY))}"
    sentence = failure_told(unfinished([problem], 8, "shards"))
    assert "22.41GB of 23.54GB" in sentence and ADVICE in sentence and "1 of 8 shards" in sentence


@pytest.mark.parametrize(
    "contents",
    [{"vmstat": "nr_free_pages 5\noom_kill 7\n"}, {"events": "oom 9\noom_kill 7\noom_group_kill 0\n"}, {}],
    ids=["of a machine", "of a container", "of another system"],
)
def test_kills_are_counted_where_the_system_tells_them(
    contents: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setattr("tasks.machine_memory.KILL_COUNTS", tuple(tmp_path / name for name in ("vmstat", "events")))
    assert num_killed_for_memory() == (7 if contents else 0)
