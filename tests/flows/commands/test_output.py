"""What commands print: JSON that any program reads, lines for people, and of what libraries log only what is news."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import pytest

from flows.commands.output import NO_NEWS, _is_news, lines_of, print_result


def test_numbers_are_numbers_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    document = {
        "mean": np.float32(0.5),
        "count": np.int64(3),
        "is_ok": np.bool_(True),
        "sides": np.array([4, 8]),
        "nothing": float("nan"),
        "far": (1.0, float("inf")),
        "names": {"b", "a"},
    }
    print_result(document, True, [])
    told = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert told == {
        "mean": 0.5,
        "count": 3,
        "is_ok": True,
        "sides": [4, 8],
        "nothing": None,
        "far": [1.0, None],
        "names": ["a", "b"],
    }


def test_people_are_told_in_words() -> None:
    document: dict[str, Any] = {
        "left": {},
        "names": ["a", "b"],
        "shape": [1, 64],
        "noise": None,
        "is_conditional": False,
        "bytes of a worker": {"lsap_e": 3 * 2**28},
        "num_bytes": 877280,
        "seed": 877280,
    }
    assert list(lines_of(document)) == [
        "left: none",
        "names: a, b",
        "shape: [1, 64]",
        "noise: -",
        "is_conditional: no",
        "bytes of a worker:",
        "  lsap_e: 805,306,368 (0.8 GiB)",
        "num_bytes: 877,280",
        "seed: 877280",
    ]


@pytest.mark.parametrize("said", NO_NEWS)
def test_that_a_task_of_prefect_has_ended_well_is_no_news(said: str) -> None:
    def is_shown(name: str, level: int, text: str) -> bool:
        return _is_news(logging.LogRecord(name, level, "", 0, text, (), None))

    assert not is_shown("prefect.task_runs", logging.INFO, said)
    assert is_shown("prefect.task_runs", logging.WARNING, said)
    assert is_shown("prefect.task_runs", logging.INFO, "Finished in state Failed('no room')")
    assert is_shown("lsap", logging.INFO, said)
