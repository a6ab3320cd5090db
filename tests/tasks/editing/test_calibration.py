"""Edits of equal effect: their strength is found once for each method, kept, and gives the effect."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tasks.editing.calibration
import tasks.measuring.attributes
from domains.embedded import Attribute
from lsap_archive import open_archive
from lsap_core.errors import ConfigError
from tasks.archived.opening import open_writer
from tasks.editing.plan import choose_edits, missing_calibrations

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
    monkeypatch.setattr(tasks.editing.calibration, "SYNTHETIC_IMAGES", 64)


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


def test_a_kept_strength_stays_also_when_images_are_added(desk: Any) -> None:
    desk.laboratory.fill(2)
    desk.laboratory.invert()
    archive, _ = desk.edit({"equal": EQUAL})
    request = desk.request({"equal": EQUAL})
    assert missing(desk, request).strengths == () and missing(desk, request).deviations == {}
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
