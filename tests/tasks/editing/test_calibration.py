"""Edits of equal effect: their strength is found once for each method, kept, and gives the effect."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import tasks.measuring.attributes
from domains.embedded import Attribute
from lsap_archive import CorruptArchiveError, open_archive, repair_archive, verify_archive
from lsap_core.errors import ConfigError
from tasks.archived.opening import open_writer
from tasks.archived.rendering import shift_of
from tasks.editing.calibration import CalibrationOptions, find_spread, find_strength, part_size
from tasks.editing.chosen import choose_edits, missing_calibrations, with_deviation
from tasks.editing.cost import dry_run
from tasks.editing.plan import EditingStage
from tasks.editing.shared_out import SharedOut
from tasks.workers.pool import WorkerLostError

EQUAL = {"direction": "right", "equal_effect": {"attribute": "brightness", "change": 0.25}}
OPTIMIZED = "stylegan2_w_plus"


@pytest.fixture(autouse=True)
def attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brightness of the image, which a random generator's codes change smoothly; and what never changes."""
    brightness = Attribute("brightness", "brightness", "", lambda images: images.mean(dim=(1, 2, 3)))
    still = Attribute("still", "nothing", "", lambda images: torch.ones(len(images)))
    blind = Attribute("blind", "nothing", "", lambda images: torch.full((len(images),), torch.nan))
    for attribute in (brightness, still, blind):
        monkeypatch.setitem(tasks.measuring.attributes.EMBEDDED, attribute.name, attribute)


def missing(desk: Any, request: Any) -> Any:
    loaded, chosen, _ = choose_edits(request)
    return missing_calibrations(open_writer(request.archive, loaded), chosen, request.calibration)


def test_the_strength_changes_the_attribute_by_so_many_standard_deviations(desk: Any) -> None:
    desk.laboratory.fill(6)
    desk.laboratory.invert()
    archive, results = desk.edit({"equal": EQUAL}, keep_images=True)
    assert [result.by_status for result in results] == [{"ok": 4}, {"ok": 2}]
    (run,) = (run for run in archive.runs if run.subject is not None)
    calibration = run.config["calibration"]
    assert calibration["response"] == pytest.approx(0.25, abs=calibration["tolerance"])
    assert calibration["num_images"] == 4 and run.subject is not None
    assert run.subject.strength == calibration["strength"] == run.config["edit"]["strength"] != 0
    ids = [f"{number}.png" for number in range(4)]
    moved = archive.codes(ids, f"{OPTIMIZED}/equal") - archive.codes(ids, OPTIMIZED)
    np.testing.assert_allclose(moved[..., 0], calibration["strength"], rtol=1e-4)
    assert {row["strength"] for row in archive.rows().to_pylist() if row["edit"]} == {calibration["strength"]}


def test_a_channel_of_s_is_calibrated_by_what_it_does_to_images(desk: Any) -> None:
    desk.laboratory.fill(4)
    desk.laboratory.invert()
    equal = {"style_channel": [10, 2], "equal_effect": {"attribute": "brightness", "change": 0.1}}
    archive, _ = desk.edit({"equal": equal}, keep_images=True)
    (run,) = (run for run in archive.runs if run.subject is not None)
    calibration = run.config["calibration"]
    assert calibration["response"] == pytest.approx(0.1, abs=calibration["tolerance"]) and calibration["strength"] != 0
    shift = shift_of(run.config)
    assert list(shift) == [10] and shift[10][0, 2].item() == pytest.approx(calibration["strength"], rel=1e-6)


def test_a_kept_strength_stays_also_when_images_are_added(desk: Any) -> None:
    desk.laboratory.fill(2)
    desk.laboratory.invert()
    archive, _ = desk.edit({"equal": EQUAL})
    request = desk.request({"equal": EQUAL})
    assert missing(desk, request).strengths == () and missing(desk, request).spreads == ()
    desk.laboratory.fill(4)
    desk.laboratory.invert()
    assert missing(desk, request).strengths == ()
    archive, _ = desk.edit({"equal": EQUAL})
    assert len({row["strength"] for row in archive.rows().to_pylist() if row["edit"]}) == 1


def test_an_edit_without_its_strength_is_not_planned(desk: Any) -> None:
    desk.laboratory.fill(2)
    desk.laboratory.invert()
    request = desk.request({"equal": EQUAL, "slight": {"direction": "right", "strength": 1}})
    (work,) = missing(desk, request).strengths
    assert (work.method, work.spec.name) == (OPTIMIZED, "equal")
    assert list(desk.plan(request).strengths) == [f"{OPTIMIZED}/slight"]


def test_an_attribute_that_does_not_vary_is_refused(desk: Any) -> None:
    desk.laboratory.fill(2)
    desk.laboratory.invert()
    for name, measured in (("still", 64), ("blind", 0)):
        equal = {**EQUAL, "equal_effect": {"attribute": name, "change": 1.0}}
        with pytest.raises(ConfigError, match=f"attribute {name} does not vary over 64 .* \\({measured} could be"):
            desk.calibrate(desk.request({"equal": equal}))
    assert open_archive(desk.laboratory.archive).edits == []


def test_a_change_out_of_reach_is_told_and_not_tried_again(desk: Any) -> None:
    desk.laboratory.fill(2)
    desk.laboratory.invert()
    equal = {**EQUAL, "equal_effect": {"attribute": "brightness", "change": 1000.0}}
    request = desk.request({"equal": equal})
    desk.calibrate(request)
    prepared = desk.plan(request)
    assert prepared.runs == () and prepared.strengths == {}
    reason = prepared.refused[f"{OPTIMIZED}/equal"]
    assert reason.startswith(f"edit equal of {OPTIMIZED}, brightness: a change of 1000 is out of reach: between")
    assert missing(desk, request).strengths == ()


# --- shared out ---------------------------------------------------------------------------------------


@dataclass
class Flaky:
    """A pool of one worker, whose process dies at some of its calls."""

    worker: Any
    dies_at: frozenset[int] = frozenset()
    calls: list[str] = field(default_factory=list)
    num_workers: int = 1
    lock: threading.Lock = field(default_factory=threading.Lock)

    def call(self, method: str, *arguments: Any, about: str = "") -> Any:
        with self.lock:
            self.calls.append(arguments[0].name)
            if len(self.calls) in self.dies_at:
                raise WorkerLostError("the process of a worker died")
            return getattr(self.worker, method)(*arguments)

    def progress(self) -> float:
        return 0.0

    def close(self) -> None:
        pass


def found_by(desk: Any, pool: Flaky, *, size: int, retry_after: tuple[float, ...] = ()) -> list[dict[str, Any]]:
    """What is kept of the spread and the strength, found as the command does."""
    request = desk.request({"equal": EQUAL})
    stage = EditingStage(request)
    wanted = stage.missing_calibrations()
    counted = {"asked": 0, "done": 0}

    def count(name: str, number: int) -> None:
        counted[name] += number

    def measure(digest: str) -> SharedOut:
        return SharedOut(
            pool,
            stage.writer,
            digest,
            retry_after=retry_after,
            asked=partial(count, "asked"),
            done=partial(count, "done"),
        )

    for spread in wanted.spreads:
        stage.writer.keep_calibration(spread.digest, find_spread(spread, measure(spread.digest), size))
    for work in wanted.strengths:
        whole = with_deviation(work, stage.writer)
        found = find_strength(whole, request.archive, measure(work.digest), size)
        stage.writer.keep_calibration(work.digest, found)
    assert counted["asked"] == counted["done"]
    names = sorted(key for key in desk.laboratory.contents() if key.startswith("calibrations/"))
    return [stage.writer.get_calibration(name.split("/")[1].removesuffix(".json")) for name in names]


def test_a_calibration_that_was_killed_is_gone_on_with_and_is_the_same_to_the_last_bit(desk: Any) -> None:
    """In one go on one worker, in parts, and in parts by commands that are killed again and again."""
    desk.laboratory.fill(6)
    desk.laboratory.invert()
    request = desk.request({"equal": EQUAL})
    whole, parts, killed = (Flaky(desk.worker(request)) for _ in range(3))
    first = desk.laboratory.archive
    in_one_go = found_by(desk, whole, size=64)
    assert len(in_one_go) == 2 and in_one_go[0] != in_one_go[1]
    desk.laboratory.archive = f"{first}-in-parts"
    desk.laboratory.invert()
    parts.worker = desk.worker(desk.request({"equal": EQUAL}))
    assert found_by(desk, parts, size=4) == in_one_go
    assert len(parts.calls) == 64 // 4 + len(whole.calls) - 1
    desk.laboratory.archive = f"{first}-killed"
    desk.laboratory.invert()
    killed.worker = desk.worker(desk.request({"equal": EQUAL}))
    killed.dies_at = frozenset({3, 19, 20})
    for _ in killed.dies_at:
        with pytest.raises(WorkerLostError):
            found_by(desk, killed, size=4)
        assert any(key.startswith("calibrating/") for key in desk.laboratory.contents())
        assert verify_archive(desk.laboratory.archive).is_sound
    assert found_by(desk, killed, size=4) == in_one_go
    assert len(killed.calls) == len(parts.calls) + 3  # what was measured is not measured again
    assert not any(key.startswith("calibrating/") for key in desk.laboratory.contents())


def test_a_part_whose_worker_died_is_tried_again(desk: Any) -> None:
    desk.laboratory.fill(2)
    desk.laboratory.invert()
    pool = Flaky(desk.worker(desk.request({"equal": EQUAL})), frozenset({2, 3}))
    assert len(found_by(desk, pool, size=4, retry_after=(0.0, 0.0))) == 2
    assert len(pool.calls) == len(set(pool.calls)) + 2


def test_a_damaged_part_is_refused_told_and_removed(desk: Any) -> None:
    desk.laboratory.fill(2)
    desk.laboratory.invert()
    pool = Flaky(desk.worker(desk.request({"equal": EQUAL})), frozenset({7}))
    with pytest.raises(WorkerLostError):
        found_by(desk, pool, size=4)
    store = desk.laboratory.store
    first, second, *_ = sorted(key for key in desk.laboratory.contents() if key.startswith("calibrating/"))
    for damaged in (store.get(first).replace(b"0", b"1"), store.get(second)):  # the last is sound, of another name
        store.put(first, damaged)
        assert [problem.key for problem in verify_archive(desk.laboratory.archive).problems] == [first]
        with pytest.raises(CorruptArchiveError, match="calibrating/"):
            found_by(desk, pool, size=4)
    assert repair_archive(desk.laboratory.archive).removed == [first]
    assert len(found_by(desk, pool, size=4)) == 2


def test_a_dry_run_tells_what_has_to_be_measured_and_a_smaller_number_is_another_calibration(desk: Any) -> None:
    desk.laboratory.fill(2)
    desk.laboratory.invert()
    request = desk.request({"equal": EQUAL})
    told = dry_run(request)
    assert told["images to calibrate with, about"] == 64 + 4 * 12
    assert 0 <= told["device hours of calibrations on this machine, one worker"] < 1  # rounded
    desk.calibrate(request)
    assert not any("calibrations" in line for line in dry_run(request))
    fewer = desk.request({"equal": EQUAL}, calibration=CalibrationOptions(num_images=4, num_synthetic=32))
    assert dry_run(fewer)["images to calibrate with, about"] == 32 + 4 * 12
    assert [part_size((side, side), size) for side, size in ((1024, 8), (1024, 50), (256, 8))] == [32, 50, 512]
