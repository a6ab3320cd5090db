"""One archive, several sources: none gets in another's way, whichever was interrupted, moved or taken away."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from lsap_archive import open_archive, verify_archive
from tasks.inversion.request import InversionRequest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

FIELDS = {"methods": "[stylegan2_w_plus]", "embedding.num_steps": 2, "workers.count": 1}
PlanHere = Callable[..., tuple[Any, InversionRequest]]
SaveDigits = Callable[[Path, Iterable[int]], list[str]]


def statuses(archive: Path) -> dict[str, str]:
    return {row["image_id"]: row["status"] for row in open_archive(str(archive)).rows(history=True).to_pylist()}


def test_an_interrupted_source_waits_while_another_one_is_inverted(
    lsap_on_cluster: Any, plan_here: PlanHere, save_digits: SaveDigits, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    first, second = save_digits(tmp_path / "first", range(3)), save_digits(tmp_path / "second", range(3, 5))
    plan_here(source=tmp_path / "first", archive=archive, **FIELDS)  # and no further
    other = lsap_on_cluster.invert("--json", source=tmp_path / "second", archive=archive, **FIELDS).wait()
    assert other.code == 0, other.err
    assert json.loads(other.out)["by_status"] == {"ok": 2}
    assert statuses(archive) == dict.fromkeys(second, "ok")

    # The first folder has moved meanwhile: its run is finished with the images where they are now.
    (tmp_path / "first").rename(tmp_path / "moved")
    resumed = lsap_on_cluster.invert("--json", source=tmp_path / "moved", archive=archive, **FIELDS).wait()
    assert resumed.code == 0, resumed.err
    assert json.loads(resumed.out)["by_status"] == {"ok": 3}
    assert statuses(archive) == dict.fromkeys([*first, *second], "ok")
    assert len(open_archive(str(archive)).runs) == 2
    assert verify_archive(str(archive)).problems == []

    # A source that was taken away is still in the archive, and the report does without its originals.
    shutil.rmtree(tmp_path / "second")
    again = lsap_on_cluster.invert(source=tmp_path / "moved", archive=archive, **FIELDS).wait()
    assert again.code == 0, again.err
    assert "nothing was left to do" in again.out
