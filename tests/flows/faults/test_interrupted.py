"""SIGTERM at moments that a seed draws: one sentence, exit code 1, nothing left; the same command goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lsap_archive import open_archive, verify_archive
from tests.flows.faults.interrupted import interrupted, moments

pytestmark = [pytest.mark.ray, pytest.mark.slow]

FIELDS = {"source": "digits:test[:16]", "methods": "[psp]", "report_images": 0}
COUNT, SECONDS = 2, 9.0  # with a Prefect server that is there, and a Ray of its own


def test_a_command_that_is_told_to_stop_ends_soon_and_takes_along_what_it_has_started(
    lsap: Any, fault_seed: int, tmp_path: Path
) -> None:
    """Each starts a Ray of its own and goes on where the last one stopped."""
    archive = tmp_path / "archive"
    ends = [interrupted(lsap, moment, archive=archive, **FIELDS) for moment in moments(COUNT, SECONDS, fault_seed)]
    assert [problem for end in ends for problem in end.problems] == []
    finished = lsap.invert(archive=archive, **FIELDS).wait()
    assert finished.code == 0, finished.err
    assert verify_archive(str(archive)).problems == []
    assert len(open_archive(str(archive)).rows(history=True)) == 16
