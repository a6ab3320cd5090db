"""The configuration of a run, which whoever may write to an archive can make say anything."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from lsap_archive import CorruptArchiveError, RunInfo
from tasks.archived.runs import EncoderOfRun, config_of


def run_with(config: dict[str, Any]) -> RunInfo:
    return RunInfo(**{**{one.name: None for one in fields(RunInfo)}, "run_id": "run-1", "config": config})


def test_what_others_go_by_is_read() -> None:
    found = config_of(
        run_with({"settings": {"a": 1}, "anchor": "0a", "encoder": {"name": "e4e", "digest": "9f"}, "x": 1})
    )
    assert (found.settings, found.anchor, found.encoder) == ({"a": 1}, "0a", EncoderOfRun("e4e", "9f"))
    assert config_of(run_with({})).encoder is None


@pytest.mark.parametrize("config", [{"encoder": []}, {"encoder": {"name": 5}}, {"settings": "x"}, {"anchor": {}}])
def test_what_makes_no_sense_is_damage_of_the_run(config: dict[str, Any]) -> None:
    with pytest.raises(CorruptArchiveError, match="the configuration of run run-1 makes no sense"):
        config_of(run_with(config))
