"""Pictures for sliders: what they show is what a run of edits keeps, one image at a time, and what is refused."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lsap_archive import Archive, ArchiveKeyError, LiveRenderer
from lsap_core.editing import Components, StyleDirection
from lsap_core.errors import CheckpointError, ConfigError
from lsap_core.generators.generator import style_widths
from tasks.archived.rendering import Renderer, Stored
from tasks.editing.live import FIRST_COMPONENTS, LiveEdits, sliders_of
from tasks.weights.devices import place
from tasks.weights.directions import save_components, save_direction
from tasks.weights.generators import load_generator
from tests.refining import REFINED, RefiningDesk, pti

METHOD = "stylegan2_w_plus"
Open = Callable[..., LiveEdits]


@pytest.fixture
def style_direction(desk: Any, tmp_path: Path) -> str:
    """A direction in S, as a file."""
    config = load_generator(desk.laboratory.generator).config
    vectors = {at: torch.linspace(-2, 2, style_widths(config)[at]) for at in (1, 4)}
    save_direction(path := str(tmp_path / "ink.safetensors"), StyleDirection("ink", vectors))
    return path


@pytest.fixture
def opened(desk: Any) -> Open:
    """Opens the desk's archive for live edits along directions; `right` is one in W."""

    def open_live(archive: Archive, *asked: str, **more: Any) -> LiveEdits:
        loaded = load_generator(desk.laboratory.generator)
        known = {"config": loaded.config, "generator_digest": loaded.digest}
        sliders = [one for name in asked for one in sliders_of(name, desk.directions, **known)]
        return LiveEdits(archive, Renderer(place(loaded.generator, torch.device("cpu")).freeze()), sliders, **more)

    return open_live


def test_a_slider_shows_what_a_run_of_edits_keeps(desk: Any, opened: Open, style_direction: str) -> None:
    """In W+, in S, and one after the other, bit for bit before the picture is encoded; 0 is the inversion."""
    desk.laboratory.fill(2)
    desk.laboratory.invert()
    right, ink = {"direction": "right", "strength": 1.5}, {"direction": style_direction, "strength": -2}
    edits = {"right": right, "ink": ink, "both": {"sequence": [right, ink]}, "none": {**right, "strength": 0}}
    archive, _ = desk.edit(edits, keep_images=True, batch_size=1)
    live: LiveRenderer = (found := opened(archive, "right", style_direction))
    assert [one.name for one in live.directions] == ["right", style_direction]
    moves = {"right": {"right": 1.5}, "ink": {style_direction: -2.0}, "none": {}}
    moves["both"] = {**moves["ink"], **moves["right"]}
    shown = {}
    for edit, strengths in moves.items():
        kept = np.asarray(Image.open(io.BytesIO(archive.images(["1.png"], f"{METHOD}/{edit}")[0])))
        shown[edit] = found.pixels("1.png", METHOD, strengths)
        np.testing.assert_array_equal(shown[edit][..., 0], kept)
        picture = Image.open(io.BytesIO(live.render("1.png", METHOD, strengths)))
        assert picture.format == "WEBP"
        np.testing.assert_array_equal(np.asarray(picture)[..., 0], kept)  # of this size nothing is lost
    assert len({one.tobytes() for one in shown.values()}) == 4
    # An edit is moved further in the same way: what its run added to the styles stays.
    np.testing.assert_array_equal(found.pixels("1.png", f"{METHOD}/ink", {"right": 1.5}), shown["both"])


def test_a_refined_image_is_moved_with_what_its_refinement_keeps(desk: Any, opened: Open) -> None:
    """Its own weights, of PTI; where these were not kept it is told what to do."""
    desk.laboratory.fill(1)
    desk.laboratory.invert()
    refining = RefiningDesk(desk.laboratory)
    refining.refine(pti())
    archive, _ = desk.edit({"right": {"direction": "right", "strength": 2}}, keep_images=True, batch_size=1)
    live = opened(archive, "right")
    kept = np.asarray(Image.open(io.BytesIO(archive.images(["0.png"], f"{REFINED}/right")[0])))
    moved = live.pixels("0.png", REFINED, {"right": 2.0})
    np.testing.assert_array_equal(moved[..., 0], kept)
    assert (moved != live.pixels("0.png", METHOD, {"right": 2.0})).any()
    archive, _ = refining.refine(pti(num_steps=7), keep="images")
    with pytest.raises(ArchiveKeyError, match=f"{REFINED} of 0.png cannot be rendered: .* kept"):
        opened(archive, "right").render("0.png", REFINED, {})


def test_components_have_sliders_that_begin_at_the_inversion(desk: Any, opened: Open, tmp_path: Path) -> None:
    desk.laboratory.fill(1)
    archive = desk.laboratory.invert()
    vectors = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]
    components = Components("pca", vectors, deviations=torch.arange(8, 0, -1.0), mean=torch.ones(8))
    save_components(path := str(tmp_path / "pca.safetensors"), components)
    live = opened(archive, path, farthest=2.5)
    assert [one.name for one in live.directions] == [f"{path} {index}" for index in range(FIRST_COMPONENTS)]
    ends = {(one.low, one.high, round(one.step, 6)) for one in live.directions}
    assert ends == {(-2.5, 2.5, round(5 / 60, 6))}
    stored = Stored.of_images(
        Renderer(load_generator(desk.laboratory.generator).generator.freeze()), archive, ["0.png"], METHOD
    )
    moved = torch.from_numpy(live.pixels("0.png", METHOD, {f"{path} 2": -1.0})).float()
    wanted = stored.show(stored.codes - 6 * vectors[2])[0].clamp(-1, 1).permute(1, 2, 0).add(1).mul(127.5)
    torch.testing.assert_close(moved, wanted, atol=1.01, rtol=0)


def test_one_image_is_made_at_a_time_and_a_few_are_kept_loaded(desk: Any, opened: Open, monkeypatch: Any) -> None:
    desk.laboratory.fill(6)
    archive = desk.laboratory.invert()
    live = opened(archive, "right")
    made, most, loaded = 0, 0, []
    load, edited, counting = Stored.of_images, Stored.edited, threading.Lock()

    def count(self: Stored, edit: Any) -> Any:
        nonlocal made, most
        with counting:
            made += 1
            most = max(most, made)
        found = edited(self, edit)
        with counting:
            made -= 1
        return found

    monkeypatch.setattr(Stored, "edited", count)
    monkeypatch.setattr(Stored, "of_images", lambda *of: loaded.append(of[2][0]) or load(*of))
    asked = [(f"{number % 2}.png", number / 8) for number in range(16)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda one: live.render(one[0], METHOD, {"right": one[1]}), asked))
    assert most == 1 and sorted(loaded) == ["0.png", "1.png"]
    alone = opened(archive, "right")
    assert found == [alone.render(image_id, METHOD, {"right": strength}) for image_id, strength in asked]
    for number in (2, 3, 4, 5, 0):
        live.render(f"{number}.png", METHOD, {})
    assert loaded[-1] == "0.png", "of six images the first is not kept any more"


@pytest.mark.parametrize(
    ("image_id", "method", "strengths", "told"),
    [
        ("9.png", METHOD, {}, "has no image 9.png"),
        ("0.png", "e4e", {}, "no published run of method e4e"),
        ("0.png", METHOD, {"rihgt": 1}, 'there is no direction rihgt; did you mean "right"\\? there are right'),
        ("0.png", METHOD, {"right": 3.5}, "right was to be 3.5; wanted -3 to 3"),
        ("0.png", METHOD, {"right": float("nan")}, "right was to be nan"),
        ("0.png", METHOD, {"right": -1e300}, "wanted -3 to 3"),
    ],
)
def test_what_cannot_be_shown_is_told_in_a_sentence(
    desk: Any, opened: Open, image_id: str, method: str, strengths: dict[str, float], told: str
) -> None:
    desk.laboratory.fill(1)
    live = opened(desk.laboratory.invert(), "right")
    with pytest.raises(ArchiveKeyError, match=told):
        live.render(image_id, method, strengths)


def test_directions_of_other_generators_and_two_of_one_name_are_refused(
    desk: Any, opened: Open, tmp_path: Path
) -> None:
    desk.laboratory.fill(1)
    archive = desk.laboratory.invert()
    with pytest.raises(ConfigError, match="named twice"):
        opened(archive, "right", "right")
    with pytest.raises(ConfigError, match="strength 0; wanted a number above 0"):
        opened(archive, "right", farthest=0.0)
    strange = StyleDirection("strange", {1: torch.ones(8)}, "4a" * 32)
    save_direction(path := str(tmp_path / "strange.safetensors"), strange)
    with pytest.raises(CheckpointError, match="found on generator 4a4a"):
        opened(archive, path)
