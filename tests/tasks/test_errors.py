"""Memory that ran out is called by its name, whoever says it in whatever words."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch

from flows.commands.exit_codes import is_wrong_request, told
from flows.running.retries import is_worth_another_try
from tasks.errors import OutOfMemoryError, SourceError, memory_errors, memory_told
from tasks.workers.pool import LocalPool


def raised(call: object) -> Exception:
    with pytest.raises(Exception) as caught:
        call()  # type: ignore[operator]
    return caught.value


ERRORS = {
    "PyTorch on a CPU": (lambda: raised(lambda: torch.empty(2**55)), "144115188075855872 bytes"),
    "NumPy": (lambda: raised(lambda: np.empty(2**55)), "256. PiB"),
    "Python": (lambda: raised(lambda: bytes(2**62)), None),
    "Arrow": (lambda: pa.ArrowMemoryError("malloc of size 1 failed"), None),
    "CUDA": (lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0"), "20.00 GiB"),
    "Ray": (lambda: RuntimeError("Task was killed due to the node running low on memory."), None),
    "as a cause": (lambda: raised(shard_that_fails), None),
}


def shard_that_fails() -> None:
    try:
        bytes(2**62)
    except MemoryError as error:
        raise RuntimeError("the shard failed") from error


@pytest.mark.parametrize("who", ERRORS)
def test_memory_is_named_with_what_makes_it_less(who: str) -> None:
    make, asked = ERRORS[who]
    sentence = told(make())
    assert sentence.startswith("memory ran out") and "batch_size, shard_rows or workers.count smaller" in sentence
    assert "\n" not in sentence and (asked is None or f"({asked} were asked for)" in sentence)


def test_other_errors_are_not_taken_for_it() -> None:
    for error in (ValueError("a wrong value"), SourceError("no image"), RuntimeError("memory-mapped file is gone")):
        assert memory_told(error) is None
    assert memory_told(None) is None


class Greedy:
    def __call__(self, size: int) -> None:
        torch.empty(size)

    def progress(self) -> float:
        return 0.0


def test_it_comes_from_a_worker_as_one_error_that_travels_and_is_not_tried_again() -> None:
    with pytest.raises(OutOfMemoryError, match="144115188075855872 bytes were asked for") as caught:
        LocalPool(Greedy).call("__call__", 2**55)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value) and told(again) == str(again) and not is_wrong_request(again)

    class State:
        def result(self, raise_on_failure: bool) -> Exception:
            return again

    assert not is_worth_another_try(None, None, State())
    with pytest.raises(KeyError), memory_errors():
        raise KeyError("another")
