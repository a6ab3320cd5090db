"""Editing and evaluating an archive by commands: killed and gone on with, and nothing left to do after it.

The tests of this file are one story, in order: each works on what the ones before have left in the archive.
"""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from flows.parameters.evaluate import EvaluateRun
from flows.parameters.invert import InvertRun
from lsap_archive import Archive, open_archive, verify_archive
from lsap_core.images import to_uint8
from tasks.evaluation.plan import EvaluationStage
from tasks.evaluation.worker import EvaluationWorker
from tasks.inversion.plan import InversionStage
from tasks.inversion.worker import EmbedWorker
from tasks.settings import Settings
from tasks.weights.generators import load_generator

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_IMAGES = 8
PATIENCE_SECONDS = 120.0
WORKERS = {"count": 1, "threads": 1, "device": "cpu"}
OPTIMIZED, ENCODED = "lsap_o_w_plus", "e4e"
EDITS = {
    "none": {"direction": "slant", "strength": 0},
    "more": {"direction": "slant", "equal_effect": {"attribute": "slant", "change": 1.0}},
}
TOO_FAR = {"direction": "slant", "equal_effect": {"attribute": "slant", "change": 100.0}}


@dataclass(frozen=True)
class Story:
    """What the commands of this file work on."""

    lsap: Any
    folder: Path
    images: Path

    @property
    def url(self) -> str:
        return str(self.folder / "archive")

    def archive(self) -> Archive:
        return open_archive(self.url)

    def config(self, name: str, **fields: Any) -> str:
        path = self.folder / f"{name}.yaml"
        shared = {"archive": self.url, "domain": "digits", "batch_size": 4, "workers": WORKERS}
        path.write_text(yaml.safe_dump({**shared, **fields}))
        return str(path)

    @property
    def edits(self) -> str:
        return self.config("edits", edits={**EDITS, "too_far": TOO_FAR}, keep_images=True, calibration_images=6)

    @property
    def evaluation(self) -> str:
        lec = {"slant": {"direction": "slant", "strength": 2}}
        return self.config("evaluation", source=str(self.images), lec=lec, frechet="digits-judge")


@pytest.fixture(scope="module")
def story(
    lsap_on_cluster: Any,
    save_digits: Callable[[Path, Iterable[int]], list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Story:
    """An archive of two methods over digits, one of them twice and one of them broken."""
    story = Story(lsap_on_cluster, tmp_path_factory.mktemp("edits"), tmp_path_factory.mktemp("digits"))
    names = save_digits(story.images, range(NUM_IMAGES))
    shutil.copy(story.images / names[0], story.images / "again.png")
    (story.images / "broken.png").write_bytes((story.images / names[1]).read_bytes()[:60])
    run = InvertRun(
        source=str(story.images),
        archive=story.url,
        domain="digits",
        methods=(OPTIMIZED, ENCODED),
        embedding={"num_steps": 3},
        keep_noise="float16",
        shard_rows=4,
        anchor={"num_samples": 500},
    )
    request = run.resolve(Settings())
    with InversionStage(request) as stage:
        worker = EmbedWorker(request)
        for job in stage.jobs():
            for shard in job.shards:
                worker(shard)
            stage.publish(job.job_id)
    return story


@pytest.fixture(scope="module")
def edited(story: Story) -> dict[str, Any]:
    """What the command that edits has printed."""
    finished = story.lsap("run", "edit", story.edits, "--json")
    assert finished.code == 0, finished.err
    printed: dict[str, Any] = json.loads(finished.out)
    return printed


def test_an_edit_of_strength_0_gives_the_images_of_the_inversion_bit_for_bit(
    story: Story, edited: dict[str, Any]
) -> None:
    """With the noise maps of the optimization, and the constant ones of the encoder."""
    archive = story.archive()
    generator = load_generator("domains/digits/generator.safetensors").generator.freeze()
    for method in (OPTIMIZED, ENCODED):
        rows = archive.sql(
            "SELECT image_id, shard FROM rows WHERE method = $method AND status = 'ok' ORDER BY row", method=method
        ).to_pylist()
        assert len(rows) == NUM_IMAGES
        for shard in {row["shard"] for row in rows}:  # a batch each: convolutions round by its size
            ids = [row["image_id"] for row in rows if row["shard"] == shard]
            codes = archive.codes(ids, method)
            np.testing.assert_array_equal(codes.view(np.int32), archive.codes(ids, f"{method}/none").view(np.int32))
            noise: Any = "constant"
            if method == OPTIMIZED:
                noise = [torch.from_numpy(maps)[:, None] for maps in archive.noise(ids, f"{method}/none")]
            with torch.no_grad():
                made = to_uint8(generator.synthesize(torch.from_numpy(codes), noise=noise))[:, :, :, 0]
            kept = [np.asarray(Image.open(io.BytesIO(png))) for png in archive.images(ids, f"{method}/none")]
            np.testing.assert_array_equal(np.stack(kept), made)
    assert archive.methods == [ENCODED, OPTIMIZED]
    told = archive.sql("SELECT DISTINCT method, noise FROM rows WHERE status = 'ok' AND edit IS DISTINCT FROM 'more'")
    kept = {row["method"]: row["noise"] for row in told.to_pylist()}
    assert kept == {
        **dict.fromkeys((ENCODED, f"{ENCODED}/none"), "constant"),
        **dict.fromkeys((OPTIMIZED, f"{OPTIMIZED}/none"), "float16"),
    }


def test_kept_images_leave_the_archive_under_the_names_of_the_images(
    story: Story, edited: dict[str, Any], tmp_path: Path
) -> None:
    method = f"{ENCODED}/more"
    finished = story.lsap("archive", "images", story.url, method, "--out", str(tmp_path), "--json")
    assert finished.code == 0, finished.err
    assert json.loads(finished.out)["without an image"] == {"broken.png": "not_inverted"}
    ids = sorted(path.name for path in story.images.iterdir() if path.name != "broken.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ids
    assert [(tmp_path / name).read_bytes() for name in ids] == story.archive().images(ids, method)
    refused = story.lsap("archive", "images", story.url, "e4e/less", "--out", str(tmp_path))
    assert refused.code == 2 and "has no e4e/less; " in refused.err and f"it has {ENCODED}" in refused.err


def test_reconstructions_leave_it_likewise_where_the_generator_is_named(
    story: Story, edited: dict[str, Any], tmp_path: Path
) -> None:
    words = ("archive", "images", story.url, ENCODED, "--out", str(tmp_path))
    refused = story.lsap(*words)
    assert refused.code == 2 and "name the generator that makes them" in refused.err
    finished = story.lsap(*words, "--domain", "digits", "--json")
    assert finished.code == 0, finished.err
    ids = sorted(path.name for path in story.images.iterdir() if path.name != "broken.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ids
    made = [np.asarray(Image.open(tmp_path / name)) for name in ids]
    kept = [np.asarray(Image.open(io.BytesIO(png))) for png in story.archive().images(ids, f"{ENCODED}/none")]
    np.testing.assert_array_equal(np.stack(made), np.stack(kept))  # of strength 0


def test_every_image_has_a_row_of_each_edit(story: Story, edited: dict[str, Any]) -> None:
    names = [f"{method}/{edit}" for method in (ENCODED, OPTIMIZED) for edit in EDITS]
    assert story.archive().edits == sorted(names)
    assert edited["by_status"] == {"ok": 4 * NUM_IMAGES, "duplicate": 4, "failed": 4}
    assert edited["by_reason"] == {"not_inverted": 4}
    assert set(edited["refused"]) == {f"{ENCODED}/too_far", f"{OPTIMIZED}/too_far"}
    assert "a change of 100 is out of reach: between strength" in edited["refused"][f"{ENCODED}/too_far"]
    for name in names:
        rows = [row for row in story.archive().rows(history=True).to_pylist() if row["method"] == name]
        assert {row["image_id"] for row in rows} == {path.name for path in story.images.iterdir()}
        assert {row["strength"] for row in rows} == {edited["strengths"][name]}
        (failed,) = (row for row in rows if row["status"] == "failed")
        assert failed["image_id"] == "broken.png" and "has no code of this image (" in failed["message"]
    assert verify_archive(story.url).is_sound


def test_edits_of_equal_effect_have_the_effect_in_the_measurements(
    story: Story, evaluated: dict[str, Any], edited: dict[str, Any]
) -> None:
    """Mean slant after minus before, over the images that decided the strength, is one standard deviation."""
    archive = story.archive()
    run = next(run for run in archive.runs if run.method == f"{OPTIMIZED}/more")
    calibration = run.config["calibration"]
    found = archive.sql(
        "SELECT avg(after.value - before.value) AS change, count(*) AS n "
        'FROM measurements AS after JOIN measurements AS before USING (image_id, measure, "by") '
        "WHERE measure = 'attribute' AND \"by\" = 'slant' AND after.method = $edit AND before.method = $method "
        "AND image_id IN (SELECT image_id FROM rows WHERE method = $method AND status = 'ok' ORDER BY row LIMIT 6)",
        edit=f"{OPTIMIZED}/more",
        method=OPTIMIZED,
    ).to_pylist()
    assert found[0]["n"] == calibration["num_images"] == 6
    assert found[0]["change"] / calibration["deviation"] == pytest.approx(calibration["response"], abs=0.01)
    assert calibration["response"] == pytest.approx(1.0, abs=calibration["tolerance"])


@pytest.fixture(scope="module")
def undisturbed(story: Story, edited: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Measurements by one worker in this process, of a copy of the archive."""
    copy = tmp_path_factory.mktemp("undisturbed") / "archive"
    shutil.copytree(story.url, copy)
    request = EvaluateRun.read(story.evaluation, [f"archive={copy}"]).resolve(Settings())
    stage, worker = EvaluationStage(request), EvaluationWorker(request)
    for job in stage.jobs():
        for shard in job.shards:
            worker(shard)
        stage.publish(job.job_id)
    return measured(open_archive(str(copy)))


@pytest.fixture(scope="module")
def evaluated(story: Story, undisturbed: list[dict[str, Any]]) -> dict[str, Any]:
    """What the command that evaluates has printed, after another one was killed in the middle of its shards."""
    first = story.lsap.start("run", "evaluate", story.evaluation)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not list(Path(story.url).glob("evaluations/*/shards/0000[01].parquet")):  # the last shard has no good image
        assert not first.has_ended and time.monotonic() < deadline, first.text("err")
        time.sleep(0.01)
    first.kill()
    assert list(Path(story.url).glob("evaluations/*/_manifest.json")) == []
    finished = story.lsap("run", "evaluate", story.evaluation, "--json")
    assert finished.code == 0, finished.err
    printed: dict[str, Any] = json.loads(finished.out)
    return printed


def test_a_killed_evaluation_gone_on_with_gives_the_rows_of_an_undisturbed_one(
    story: Story, evaluated: dict[str, Any], undisturbed: list[dict[str, Any]]
) -> None:
    found = measured(story.archive())
    assert len(found) == len(undisturbed) > 0
    for one, other in zip(found, undisturbed, strict=True):
        assert {**one, "value": None} == {**other, "value": None}
        assert (one["value"] is None) == (other["value"] is None)
        assert one["value"] is None or one["value"] == pytest.approx(other["value"], rel=1e-4, abs=1e-5)
    assert 0 < evaluated["measured"] < 6 * NUM_IMAGES  # what the killed one had measured was not measured again
    assert {one["num_images"] for of in evaluated["frechet"].values() for one in of} == {NUM_IMAGES}
    report = verify_archive(story.url)
    assert report.is_sound and report.counts["measurements"] == len(found)


def test_an_edit_of_strength_0_has_the_measurements_of_the_inversion(story: Story, evaluated: dict[str, Any]) -> None:
    rows = measured(story.archive())
    for method in (OPTIMIZED, ENCODED):
        values = {
            name: {
                (row["image_id"], row["measure"], row["by"]): (row["value"], row["problem"])
                for row in rows
                if row["method"] == name and row["measure"] != "lec"
            }
            for name in (method, f"{method}/none")
        }
        assert values[method] == values[f"{method}/none"] and len(values[method]) > 10 * NUM_IMAGES


def test_a_second_command_has_nothing_to_do_and_starts_no_workers(
    story: Story, edited: dict[str, Any], evaluated: dict[str, Any]
) -> None:
    page = Path(edited["report"])

    def written() -> dict[Path, int]:
        files = (path for path in Path(story.url).rglob("*") if path.is_file() and path.parent != page.parent)
        return {path: path.stat().st_mtime_ns for path in files}

    before = written()
    assert "Nothing of this was measured yet" in page.read_text()
    again = story.lsap("run", "edit", story.edits, LSAP_RAY_ADDRESS="127.0.0.1:1")  # nobody is there
    assert again.code == 0, again.err
    assert "nothing was left to do" in again.out
    assert written() == before
    assert "Closeness to the originals" in page.read_text()  # by the evaluation after the first command


def test_both_commands_write_a_page_with_pictures_that_the_index_leads_to(
    story: Story, edited: dict[str, Any], evaluated: dict[str, Any]
) -> None:
    index = (Path(story.url) / "reports" / "index.html").read_text()
    for command, report in (("edit", edited["report"]), ("evaluate", evaluated["report"])):
        assert report == f"{story.url}/reports/{command}.html"
        assert f'href="./{command}.html"' in index and f'href="./{command}.md"' in index
        page = Path(report).read_text()
        assert page.count("data:image/png;base64,") >= 4 * 2 * len(EDITS)
        assert ("too_far</b> has no strength" in page) == (command == "edit")
        assert Path(report).with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def measured(archive: Archive) -> list[dict[str, Any]]:
    """Every measurement by subject and measure."""
    rows = archive.measurements().to_pylist()
    return sorted(rows, key=lambda row: (row["method"], row["row"], row["measure"], row["by"] or ""))


def test_codes_from_elsewhere_are_edited_measured_and_queried_by_commands(story: Story, edited: dict[str, Any]) -> None:
    """Codes of the encoder, as its authors' script would have saved them; edited in W and in S."""
    ids = sorted(row["image_id"] for row in _good_rows(story, ENCODED))
    codes = story.archive().codes(ids, ENCODED)
    torch.save(dict(zip(ids, torch.from_numpy(codes), strict=True)), story.folder / "latents.pt")
    asked = ("--method", "foreign", "--domain", "digits", "--images", str(story.images), "--space", "w_plus")
    imported = story.lsap("archive", "import", story.url, str(story.folder / "latents.pt"), *asked, "--json")
    assert imported.code == 0, imported.err
    assert json.loads(imported.out)["by_status"] == {"ok": NUM_IMAGES}
    slant = {"direction": "slant", "strength": 2}
    both = {"sequence": [{"style_channel": [3, 5], "strength": 5}, slant]}
    fields: dict[str, Any] = {"methods": ["foreign"], "edits": {"slant": slant, "both": both}, "keep_images": True}
    edits = story.lsap("run", "edit", story.config("of_foreign", **fields), "--json")
    assert edits.code == 0, edits.err
    methods = ["foreign", "foreign/slant", "foreign/both", ENCODED]
    evaluation = story.config("evaluate_foreign", source=str(story.images), methods=methods)
    evaluated = story.lsap("run", "evaluate", evaluation, "--json")
    assert evaluated.code == 0, evaluated.err

    archive = story.archive()
    np.testing.assert_array_equal(archive.codes(ids, "foreign"), codes)
    np.testing.assert_array_equal(archive.codes(ids, "foreign/both"), archive.codes(ids, "foreign/slant"))
    assert archive.images(ids, "foreign/both") != archive.images(ids, "foreign/slant")
    query = """select method, measure, avg(value) as mean from measurements
        where measure in ('mse', 'sncd') and method in ('foreign', 'foreign/slant', 'foreign/both', $encoded)
        group by all"""
    found = {(row["method"], row["measure"]): row["mean"] for row in archive.sql(query, encoded=ENCODED).to_pylist()}
    assert found["foreign", "mse"] == pytest.approx(found[ENCODED, "mse"])
    assert found["foreign", "sncd"] == pytest.approx(found[ENCODED, "sncd"])
    assert len({found[method, "sncd"] for method in methods[:3]}) == 3  # the channel counts, which no code has
    assert verify_archive(story.url).is_sound


def _good_rows(story: Story, method: str) -> list[dict[str, Any]]:
    query = "SELECT image_id FROM rows WHERE method = $method AND status = 'ok'"
    rows: list[dict[str, Any]] = story.archive().sql(query, method=method).to_pylist()
    return rows
