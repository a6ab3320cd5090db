"""Refining an archive by commands: killed and gone on with, then edited and measured; one story, in order."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from flows.parameters.invert import InvertRun
from lsap_archive import Store, open_archive, verify_archive
from lsap_core.refinement.hyperstyle import HyperStyleSettings
from lsap_core.refinement.hyperstyle_checkpoint import HYPERSTYLE as HYPERSTYLE_FORM
from lsap_core.refinement.hyperstyle_networks import HyperNetwork
from lsap_core.refinement.pti_checkpoint import SHARED_WEIGHTS, Group, options_of
from lsap_core.refinement.pti_shared import SharedWeights
from lsap_core.refinement.sam_checkpoints import PREDICTOR
from lsap_core.refinement.sam_networks import InvertibilityPredictor, PredictorConfig
from lsap_core.refinement.sfe_checkpoints import SFE
from lsap_core.refinement.sfe_networks import SfeConfig, SfeNetworks
from tasks.archived.rendering import Renderer, Stored
from tasks.inversion.plan import InversionStage
from tasks.inversion.worker import EmbedWorker
from tasks.settings import Settings
from tasks.weights.generators import load_generator
from tasks.weights.refiners import encode_networks

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_IMAGES = 8
REFINED = "e4e/pti"
GENERATOR = "domains/digits/generator.safetensors"
HFGI = "domains/digits/refiners/hfgi_e4e.safetensors"
HYPERSTYLE: dict[str, Any] = {"num_passes": 2, "backbone": "small", "layers": [0, 3, 5, 8]}
FIELDS = {"domain": "digits", "batch_size": 4, "workers": {"count": 1, "threads": 1, "device": "cpu"}}


@dataclass(frozen=True)
class Story:
    """What the commands of this file work on."""

    lsap: Any
    folder: Path
    images: Path

    @property
    def url(self) -> str:
        return str(self.folder / "archive")

    def config(self, flow: str, **fields: Any) -> str:
        path = self.folder / f"{flow}.yaml"
        path.write_text(yaml.safe_dump({**FIELDS, "archive": self.url, **fields}))
        return str(path)

    @property
    def refinement(self) -> str:
        settings = {"pti": {"num_steps": 16, "learning_rate": 0.002, "stop_at_lpips": None}}
        return self.config("refine", source=str(self.images), refiners=["pti"], refiner_settings=settings)


@pytest.fixture(scope="module")
def story(
    lsap_on_cluster: Any,
    save_digits: Callable[[Path, Iterable[int]], list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Story:
    """An archive of e4e's codes of some digits."""
    story = Story(lsap_on_cluster, tmp_path_factory.mktemp("refinements"), tmp_path_factory.mktemp("digits"))
    save_digits(story.images, range(NUM_IMAGES))
    few = {"shard_rows": 4, "anchor": {"num_samples": 500}}
    run = InvertRun(source=str(story.images), archive=story.url, domain="digits", methods=("e4e",), **few)
    request = run.resolve(Settings())
    with InversionStage(request) as stage:
        worker = EmbedWorker(request)
        for job in stage.jobs():
            for shard in job.shards:
                worker(shard)
            stage.publish(job.job_id)
    return story


@pytest.fixture(scope="module")
def refined(story: Story) -> dict[str, Any]:
    """What the second of two commands has printed: the first was killed when a shard was done."""
    command = story.lsap.start("run", "refine", story.refinement, "--json")
    store, deadline = Store.from_url(story.url), time.monotonic() + 120
    while not (done := [key for key in store.sizes() if "pti" in key and "/_commit/" in key]):
        assert not command.has_ended and time.monotonic() < deadline, command.text("err")
        time.sleep(0.02)
    command.kill()
    before = {key: store.get(key) for key in done}
    finished = story.lsap("run", "refine", story.refinement, "--json")
    assert finished.code == 0, finished.err
    printed: dict[str, Any] = json.loads(finished.out)
    assert printed["refined"] == NUM_IMAGES - 4 * len(done)
    manifest = json.loads(store.get(done[0].split("/_commit/")[0] + "/_manifest.json"))
    kept = {one["sha256"] for one in manifest["files"]}
    for data in before.values():  # what was done is what readers see
        assert {one["sha256"] for one in json.loads(data)["objects"]} <= kept
    return printed


def test_a_killed_refinement_is_gone_on_with_and_images_come_closer(story: Story, refined: dict[str, Any]) -> None:
    archive = open_archive(story.url)
    assert archive.methods == ["e4e", REFINED] and refined["refinements"] == [REFINED]
    paired = archive.sql(
        "select r.mse < i.mse as is_closer from rows r join rows i on r.subject_run_id = i.run_id "
        "and r.subject_row = i.row where r.method = $method",
        method=REFINED,
    ).to_pylist()
    assert len(paired) == NUM_IMAGES and all(row["is_closer"] for row in paired)
    page = Path(refined["report"].removeprefix("file://")).read_text()
    assert page.count("<img ") == 3 * NUM_IMAGES and f"{REFINED}</th>" in page  # original, inversion, refinement
    again = story.lsap("run", "refine", story.refinement, "--json")
    assert (again.code, json.loads(again.out)["refined"]) == (0, 0), again.err


def test_refinements_are_edited_and_measured_like_inversions(story: Story, refined: dict[str, Any]) -> None:
    edits = {"slant": {"direction": "slant", "strength": 3}}
    finished = story.lsap("run", "edit", story.config("edit", edits=edits), "--json")
    assert finished.code == 0, finished.err
    assert json.loads(finished.out)["edited"] == 2 * NUM_IMAGES
    finished = story.lsap("run", "evaluate", story.config("evaluate", source=str(story.images)), "--json")
    assert finished.code == 0, finished.err
    names = {"e4e", REFINED, "e4e/slant", f"{REFINED}/slant"}
    assert set(json.loads(finished.out)["evaluations"]) == names
    means = open_archive(story.url).sql(
        "select method, avg(value) as mean from measurements where measure = 'mse' group by method"
    )
    mse = dict(zip(*(column.to_pylist() for column in means.columns), strict=True))
    assert mse.keys() == names and mse[REFINED] < mse["e4e"] < mse[f"{REFINED}/slant"]
    assert verify_archive(story.url).is_sound


@pytest.fixture(scope="module")
def small_networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of small networks with random weights, of every refiner that has some and the digits have no file for."""
    loaded = load_generator(GENERATOR)
    config, group = loaded.config, Group("e4e", "0123", ())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hyper = HyperNetwork(HyperStyleSettings(**HYPERSTYLE).config(config))
        editor = SfeNetworks(SfeConfig.for_generator(config, backbone="small"))
        predictor = InvertibilityPredictor(PredictorConfig.for_generator(config, base="small"))
        shared = SharedWeights(config)
        for name, parameter in (*hyper.named_parameters(), *shared.named_parameters()):
            if name.endswith(("output.weight", "shared.w1")) or name == "weights":  # 0 in new ones
                nn.init.normal_(parameter, 0, 0.02)
    told = {"generator_digest": loaded.digest}
    data = {
        "hyperstyle": encode_networks(HYPERSTYLE_FORM, hyper.config, hyper.state_dict(), **told),
        "sfe": encode_networks(SFE, editor.config, editor.state_dict(), **told),
        "sam": encode_networks(PREDICTOR, predictor.config, predictor.state_dict(), **told),
        "pti_shared": encode_networks(
            SHARED_WEIGHTS, config, shared.state_dict(), options=options_of(group, {}), **told
        ),
    }
    folder = tmp_path_factory.mktemp("networks")
    for name, file in data.items():
        (folder / f"{name}.safetensors").write_bytes(file)
    return {name: str(folder / f"{name}.safetensors") for name in data}


def test_all_refiners_refine_side_by_side(
    story: Story, refined: dict[str, Any], small_networks: dict[str, str]
) -> None:
    names = ["hfgi", "hyperstyle", "pti_shared", "sam", "sfe"]
    run = story.config(
        "refine_by_all",
        source=str(story.images),
        refiners=names,
        refiner_settings={"hyperstyle": HYPERSTYLE, "sam": {"num_steps": 4, "prior_samples": 100, "record_every": 1}},
        refiner_networks=small_networks,
    )
    finished = story.lsap("run", "refine", run, "--json")
    assert finished.code == 0, finished.err
    printed = json.loads(finished.out)
    assert printed["refined"] == len(names) * NUM_IMAGES and printed["refinements"] == [f"e4e/{name}" for name in names]
    assert "pti_shared was tuned to 0 images, and 8 of the 8 of e4e are not among them" in printed["notes"]
    kept = printed["bytes_per_image"]
    assert kept["e4e/pti_shared"] < kept["e4e/hfgi"] < refined["bytes_per_image"][REFINED]
    archive, ids = open_archive(story.url), sorted(path.name for path in story.images.iterdir())
    renderer = Renderer(load_generator(GENERATOR).generator.freeze(), {**small_networks, "e4e/hfgi": HFGI})
    plain = Stored.of_images(renderer, archive, ids, "e4e").render()
    for name in names:
        images = Stored.of_images(renderer, archive, ids, f"e4e/{name}").render()
        assert (images - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-3, name
    assert verify_archive(story.url).is_sound


def test_networks_that_are_not_there_are_named_before_anything_is_started(story: Story) -> None:
    run = story.config("refine_more", source=str(story.images), refiners=["pti_shared"])
    finished = story.lsap("run", "refine", run)
    assert finished.code == 2 and "needs its networks" in finished.err.splitlines()[-1], finished.err
    assert "refiner_networks.pti_shared=" in finished.err.splitlines()[-1]
