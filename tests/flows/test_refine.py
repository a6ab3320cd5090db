"""Refining an archive by commands: killed and gone on with, then edited and measured; one story, in order."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.parameters.invert import InvertRun
from lsap_archive import Store, open_archive, verify_archive
from tasks.inversion.plan import InversionStage
from tasks.inversion.worker import EmbedWorker
from tasks.settings import Settings

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_IMAGES = 8
REFINED = "e4e/pti"
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


def test_networks_that_are_not_there_are_named_before_anything_is_started(story: Story) -> None:
    run = story.config("refine_more", source=str(story.images), refiners=["sfe"])
    finished = story.lsap("run", "refine", run)
    assert finished.code == 2 and "needs its networks" in finished.err.splitlines()[-1], finished.err
    assert "refiner_networks.sfe=" in finished.err.splitlines()[-1]
