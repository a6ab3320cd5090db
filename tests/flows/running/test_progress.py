"""What is said of shards under way where no terminal shows a bar."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from flows.running.progress import shown_progress
from tasks.workers.pool import LocalPool


class Idle:
    """A worker that does nothing."""

    def progress(self) -> float:
        """Nothing is under way."""
        return 0.0


def test_a_line_says_now_and_then_how_far_it_is_and_what_is_left(
    prefect_server: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("flows.running.progress.LINE_SECONDS", 0.2)
    caplog.set_level("INFO", "lsap")

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "lsap"]

    @flow
    def work() -> None:
        with shown_progress(LocalPool(Idle), 400) as advance:
            advance(100)
            deadline = time.monotonic() + 20
            while len(lines()) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.05)

    with temporary_settings({PREFECT_API_URL: prefect_server.url, PREFECT_LOGGING_TO_API_ENABLED: False}):
        work()
    told = r"100 of 400 images x methods, [\d.]+/s, 0:00:0\d so far, about 0:00:\d\d left"
    assert all(re.fullmatch(told, line) for line in lines()), lines()
