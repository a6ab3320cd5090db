"""The whole way: PNG files in, Prefect and Ray in between, an archive on an object store out; then again, and more.

The tests of this file are one story, in order: the first command fills the archive, each later one adds to it.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from domains.digits.data import load_split
from flows.commands.markdown_tables import cells_of
from lsap_archive import Archive, Store, open_archive, verify_archive
from lsap_core.images import to_uint8
from tasks.weights.generators import load_generator

pytestmark = [pytest.mark.ray, pytest.mark.object_store, pytest.mark.slow]

URL = "s3://lsap/end to end/archive"
METHODS = ("stylegan2_w_plus", "lsap_o_w_plus")
METRICS = ("mse", "lpips", "lpips_judge", "identity_similarity", "sncd", "w_distance")


@dataclass(frozen=True)
class Story:
    """What the commands of this file work on."""

    lsap: Any
    images: Path
    options: dict[str, Any]
    save_digits: Callable[[Path, Iterable[int]], list[str]]

    def invert(self, *flags: str, **fields: Any) -> Any:
        known = {"source": self.images, "archive": URL, "embedding.num_steps": 6, "workers.count": 2}
        return self.lsap.invert(*flags, **{**known, **fields}).wait()

    def archive(self) -> Archive:
        return open_archive(URL, storage_options=self.options)

    def store(self) -> Store:
        return Store.from_url(URL, self.options)


@pytest.fixture(scope="module")
def story(
    lsap_on_cluster: Any,
    s3_endpoint: str,
    save_digits: Callable[[Path, Iterable[int]], list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Story:
    options = {"key": "who", "secret": "reads", "endpoint_url": s3_endpoint}
    return Story(lsap_on_cluster, tmp_path_factory.mktemp("digits") / "images", options, save_digits)


@pytest.fixture(scope="module")
def first(story: Story) -> Any:
    """Ten digits, two methods, three shards each."""
    story.save_digits(story.images, range(10))
    finished = story.invert()
    assert finished.code == 0, finished.err
    return finished


def test_every_image_has_one_complete_row_of_each_method(story: Story, first: Any) -> None:
    rows = story.archive().rows(history=True).to_pylist()
    wanted = {(method, path.name) for method in METHODS for path in story.images.iterdir()}
    assert Counter((row["method"], row["image_id"]) for row in rows) == dict.fromkeys(wanted, 1)
    for row in rows:
        assert row["status"] == "ok"
        assert (row["width"], row["height"], row["num_steps"]) == (32, 32, 6)
        assert row["seconds"] > 0
        assert all(np.isfinite(row[name]) for name in (*METRICS, "final_loss"))
    assert story.archive().describe()["num_rows"] == 20


@pytest.mark.parametrize("method", METHODS)
def test_codes_and_noise_give_the_mse_of_the_row(method: str, story: Story, first: Any) -> None:
    """What is archived is enough to make the reconstruction that was measured."""
    archive = story.archive()
    rows = [row for row in archive.rows(history=True).to_pylist() if row["method"] == method]
    ids = [row["image_id"] for row in rows]
    codes, noise = archive.codes(ids, method), archive.noise(ids, method)
    assert np.isfinite(codes).all()
    assert all(np.isfinite(maps).all() for maps in noise)
    assert np.isfinite(archive.trace(ids, method).values[:, :, 0]).all()
    generator = load_generator("domains/digits/generator.safetensors").generator
    with torch.no_grad():
        made = generator.synthesize(torch.from_numpy(codes), noise=[torch.from_numpy(maps)[:, None] for maps in noise])
    split = load_split("test")
    target = np.stack([split.images[int(image_id[:4])] for image_id in ids])
    difference = (to_uint8(made)[:, :, :, 0].astype(float) - target.astype(float)) / 127.5  # in the range [-1, 1]
    recomputed = np.square(difference).mean(axis=(1, 2))
    # One gray level of one pixel is 6e-8 here: rounding of float32 may tip a few pixels over.
    np.testing.assert_allclose([row["mse"] for row in rows], recomputed, rtol=1e-3, atol=1e-5)


def test_the_report_and_its_table_are_in_the_archive(story: Story, first: Any) -> None:
    store = story.store()
    page, table = store.get("reports/invert.html").decode(), store.get("reports/invert.md").decode()
    parser = HTMLParser()
    parser.feed(page)
    parser.close()
    for method in ("StyleGAN2-W+", "LSAP_O-W+"):
        assert method in table
        assert method in page
    cells = {
        cell for line in table.splitlines() if line.startswith("|") for cell in cells_of(line) if "---" not in cell
    }
    assert len(cells) > 20 and [cell for cell in cells if cell not in first.out] == []
    assert f"report:  {URL}/reports/invert.html" in first.out
    assert "20 ok" in first.out


def test_the_archive_is_sound(story: Story, first: Any) -> None:
    report = verify_archive(URL, storage_options=story.options)
    assert report.problems == []
    assert report.information == []  # nothing is left over, such as staged objects
    answer = story.lsap("archive", "verify", URL, "--json")
    assert (answer.code, json.loads(answer.out)["problems"]) == (0, [])


def test_the_server_saw_one_task_for_each_shard(story: Story, first: Any, prefect_server: Any) -> None:
    runs = prefect_server.task_runs_of(first)
    names = Counter(run["name"].rsplit("-", 1)[0] for run in runs if run["name"].startswith("embed-"))
    assert names == {"embed-stylegan2_w_plus": 3, "embed-lsap_o_w_plus": 3}
    assert {run["state_type"] for run in runs} == {"COMPLETED"}


def test_the_same_command_again_embeds_nothing(story: Story, first: Any) -> None:
    before = runs_of(story)
    again = story.invert()
    assert again.code == 0, again.err
    assert "10 images; this command: nothing was left to do" in again.out
    assert "to embed" not in again.err
    assert runs_of(story) == before


def test_two_more_images_are_all_that_is_embedded(story: Story, first: Any) -> None:
    before = runs_of(story)
    names = story.save_digits(story.images, range(10, 12))
    more = story.invert("--json")
    assert more.code == 0, more.err
    told = json.loads(more.out)
    assert (told["num_images"], told["embedded"], told["by_status"]) == (12, 4, {"ok": 4})
    after = runs_of(story)
    assert before.items() <= after.items()
    new = [row for row in story.archive().rows(history=True).to_pylist() if row["run_id"] not in before]
    assert Counter((row["method"], row["image_id"]) for row in new) == {
        (method, name): 1 for method in METHODS for name in names
    }


def test_a_method_added_is_the_only_one_that_runs(story: Story, first: Any) -> None:
    before = runs_of(story)
    num_images = len(list(story.images.iterdir()))
    more = story.invert("--json", methods="[stylegan2_w_plus, lsap_o_w_plus, l2_w_plus]")
    assert more.code == 0, more.err
    assert json.loads(more.out)["by_status"] == {"ok": num_images}
    after = runs_of(story)
    assert before.items() <= after.items()
    assert {run_id.rsplit("-", 1)[0] for run_id in after.keys() - before.keys()} == {"l2_w_plus"}
    table = story.store().get("reports/invert.md").decode()
    assert table.count(f"{num_images} ok") == 3
    assert verify_archive(URL, storage_options=story.options).problems == []


def test_a_bucket_that_does_not_exist_is_one_sentence(story: Story, first: Any) -> None:
    finished = story.invert(archive="s3://nowhere/archive")
    assert (finished.code, finished.out) == (1, "")
    begun, line = finished.err.splitlines()
    assert begun.startswith("INFO lsap: checking ")
    assert "bucket nowhere" in line and "does not exist" in line and "create it" in line


def test_an_outage_of_the_store_is_waited_for(
    story: Story, object_store: Any, save_digits: Callable[[Path, Iterable[int]], list[str]], tmp_path: Path
) -> None:
    """Longer than the client itself tries nobody answers: that costs time and nothing else."""
    url = "s3://lsap/outage"
    save_digits(tmp_path, range(24))
    fields = {"source": tmp_path, "archive": url, "methods": "[lsap_o_w_plus]", "embedding.num_steps": 20}
    command = story.lsap.invert("--json", **fields)
    store, deadline = Store.from_url(url, story.options), time.monotonic() + 120
    while not any("/_commit/" in key for key in store.sizes()):
        assert not command.has_ended and time.monotonic() < deadline, command.text("err")
        time.sleep(0.05)
    object_store.stop()
    try:
        while "Retry 1/3" not in command.text("err"):
            assert not command.has_ended and time.monotonic() < deadline, command.text("err")
            time.sleep(0.2)
    finally:
        object_store.start()
    finished = command.wait()
    assert finished.code == 0, finished.err
    assert "StoreUnavailableError" in finished.err
    assert json.loads(finished.out)["by_status"] == {"ok": 24}
    assert verify_archive(url, storage_options=story.options).problems == []


def test_credentials_are_kept_nowhere(
    story: Story, first: Any, s3_credentials: tuple[str, str], prefect_server: Any
) -> None:
    store = story.store()
    kept = {key: store.get(key) for key in store.keys()}  # noqa: SIM118
    assert len(kept) > 100
    database = [path for path in prefect_server.log.parent.iterdir() if path.is_file()]
    assert any(path.suffix == ".db" for path in database)
    told = {str(path): path.read_bytes() for path in [*story.lsap.outputs(), *database]}
    assert any(b"embed-lsap_o_w_plus" in data for data in told.values())  # it is what it seems to be
    for credential in s3_credentials:
        for name, data in {**kept, **told}.items():
            assert credential.encode() not in data, name


def runs_of(story: Story) -> dict[str, bytes]:
    """Manifest of every run: a run that is done never changes."""
    store = story.store()
    return {run.run_id: store.get(f"runs/{run.run_id}/_manifest.json") for run in story.archive().runs}
