"""Refiners with networks of their own: found, told apart, refused, and needed again for edits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lsap_core.errors import CheckpointError, ConfigError, MissingWeightsError
from lsap_core.presets import REFINERS
from tasks.archived.refiners import RefinerOfRun, networks_of
from tasks.archived.rendering import Renderer, Stored
from tasks.refinement.chosen import check_refiners
from tasks.refinement.plan import RefinementStage
from tasks.weights.generators import load_generator
from tasks.weights.refiners import load_refiner_networks

METHOD = "stylegan2_w_plus"
REFINED = f"{METHOD}/hfgi"
HFGI = REFINERS["hfgi"]


def test_hfgi_refines_and_its_networks_are_needed_for_edits(
    refining: Any, desk: Any, hfgi_file: Callable[..., str]
) -> None:
    files = {"hfgi": hfgi_file()}
    renderer = Renderer(load_generator(refining.laboratory.generator).generator.freeze(), files)
    archive, outcomes = refining.refine(HFGI, refiner_networks=files)
    assert [outcome.by_status for outcome in outcomes] == [{"ok": 4}, {"ok": 1}]
    run = next(run for run in archive.runs if run.method == REFINED)
    assert run.config["refiner"]["digest"] == load_refiner_networks(files["hfgi"], renderer.generator.config).digest
    edits = {name: {"direction": "right", "strength": far} for name, far in (("right", 2.0), ("none", 0.0))}
    archive, _ = desk.edit(edits, keep_images=True, refiners=files)
    ids = ["0.png", "3.png"]
    inversion, same, other = (
        Stored.of_images(renderer, archive, ids, f"{REFINED}{edit}").render() for edit in ("", "/none", "/right")
    )
    assert torch.equal(inversion, same) and not torch.equal(inversion, other)
    plain = Stored.of_images(renderer, archive, ids, METHOD).render()
    assert not torch.equal(inversion, plain)
    with pytest.raises(ConfigError, match=r"networks hfgi of a refinement have no file.*refiner_networks.hfgi=\.\.\."):
        Stored.of_images(refining.renderer, archive, ids, REFINED)
    others = Renderer(renderer.generator, {"hfgi": hfgi_file("others", seed=1)})
    with pytest.raises(CheckpointError, match=r"the refinement was made with .*name the file of those"):
        Stored.of_images(others, archive, ids, REFINED)


def test_networks_of_one_embedding_come_before_those_of_all(refining: Any, hfgi_file: Callable[..., str]) -> None:
    own, others = hfgi_file("own", seed=1), hfgi_file("others")
    config = load_generator(refining.laboratory.generator).config
    wanted = {
        f"{METHOD}/hfgi": {"hfgi": others, f"{METHOD}/hfgi": own, "e4e/hfgi": others},
        "hfgi": {"hfgi": own, "e4e/hfgi": others},
    }
    for name, files in wanted.items():
        request = refining.request(HFGI, methods=(METHOD,), refiner_networks=files)
        (one,) = RefinementStage(request, start=False).refinements
        assert (one.about["networks"], one.about["digest"]) == (name, load_refiner_networks(own, config).digest)
        assert check_refiners(request) == {REFINED: one.bytes_per_image}  # needs no archive
    about = RefinerOfRun("hfgi", {}, f"{METHOD}/hfgi", load_refiner_networks(own, config).digest)
    assert networks_of(about, {"hfgi": own}, refining.renderer.generator) is not None  # one file for all of them by now
    with pytest.raises(CheckpointError, match=rf"refiner_networks.{METHOD}/hfgi=\.\.\."):
        networks_of(about, {"hfgi": others}, refining.renderer.generator)


def test_what_does_not_belong_together_is_refused_or_told(
    refining: Any, hfgi_file: Callable[..., str], tmp_path: Path
) -> None:
    with pytest.raises(MissingWeightsError, match=r"refiner hfgi needs its networks.*refiner_networks.hfgi=\.\.\."):
        RefinementStage(refining.request(HFGI))
    with pytest.raises(
        MissingWeightsError, match=r"refiner hfgi .*, refiner sfe .*networks.hfgi=\.\.\., refiner_networks.sfe="
    ):
        RefinementStage(refining.request(HFGI, REFINERS["sfe"]))
    with pytest.raises(ConfigError, match="holds networks of hfgi, sfe wants those of sfe"):
        RefinementStage(refining.request(REFINERS["sfe"], refiner_networks={"sfe": hfgi_file()}))
    with pytest.raises(CheckpointError, match=r"it holds networks of kind .Generator.; wanted one of hfgi"):
        RefinementStage(refining.request(HFGI, refiner_networks={"hfgi": refining.laboratory.generator}))
    (tmp_path / "page.pt").write_bytes(b"<!doctype html>")
    with pytest.raises(CheckpointError, match="a web page"):
        RefinementStage(refining.request(HFGI, refiner_networks={"hfgi": str(tmp_path / "page.pt")}))
    mine = RefinementStage(refining.request(HFGI, refiner_networks={"hfgi": hfgi_file()}), start=False)
    assert mine.notes == ()
    strangers = {"hfgi": hfgi_file("strangers", generator_digest="9f86", encoder_digest="d081")}
    told = " ".join(RefinementStage(refining.request(HFGI, refiner_networks=strangers), start=False).notes)
    assert "trained with another generator (9f86)" in told and "codes of another embedding" in told
