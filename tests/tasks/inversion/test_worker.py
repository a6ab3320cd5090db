"""A shard in, rows and arrays out: whatever is wrong with an image, and whenever the work was interrupted."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lsap_archive import ArchiveKeyError, RunWriter, Store, StoreUnavailableError, open_archive
from lsap_core.encoders import Encoder
from lsap_core.errors import CheckpointError
from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.generators.generator import Noise
from lsap_core.images import from_uint8, to_uint8
from lsap_core.inversion import EncoderEmbedder, EncoderSettings, KeepNoise
from lsap_core.perceptual.features import FeatureDistance
from lsap_core.presets import METHODS, Method, method
from tasks.archived.anchors import AnchorOptions
from tasks.archived.image_seeds import image_seed
from tasks.inversion.failed_copies import with_failed_copies
from tasks.inversion.worker import EmbedWorker
from tasks.pictures.formats import READERS_VERSION, PictureFormat
from tasks.stage import Shard
from tasks.weights.encoders import load_encoder
from tasks.weights.generators import load_generator, save_generator
from tasks.weights.networks import NetworkChoice
from tasks.workers.pool import LocalPool

METRICS = ("mse", "lpips", "lpips_judge", "identity_similarity", "sncd", "w_distance")
# Exploration draws random numbers at every step, so a state that forgets its streams goes another way.
SIX_STEPS = (method("lsap_o_w_plus", num_steps=6, record_every=2, sncd_weight=0.5, exploration=0.5),)


def rows_of(archive: Any) -> dict[str, dict[str, Any]]:
    return {row["image_id"]: row for row in archive.rows().to_pylist()}


def everything(archive: Any, ids: list[str], name: str) -> dict[str, np.ndarray]:
    arrays = {"w_plus": archive.codes(ids, name), "trace": archive.trace(ids, name).values}
    return arrays | {f"noise_{index:02d}": maps for index, maps in enumerate(archive.noise(ids, name))}


def assert_same_bits(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_a_shard_that_is_there_is_not_embedded_again(laboratory: Any) -> None:
    laboratory.fill(2)
    prepared = laboratory.prepare()
    laboratory.embed(prepared)
    before = laboratory.contents()
    for picture in laboratory.source.iterdir():  # no image is read, no step is made
        picture.unlink()
    (outcome,) = laboratory.embed(prepared)  # by a try of the same command, which nobody had heard of
    assert (outcome.won, outcome.by_status) == (True, {"ok": 2})
    (shard,) = prepared.shards
    other = laboratory.worker(prepared)(replace(shard, command="another"))
    assert (other.won, other.by_status) == (False, {})
    assert laboratory.contents() == before


def test_images_that_were_not_there_at_their_turn_are_embedded_once_they_are(laboratory: Any) -> None:
    laboratory.fill(4)
    prepared = laboratory.prepare()
    was = {name: (laboratory.source / name).read_bytes() for name in ("1.png", "2.png", "3.png")}
    laboratory.put("1.png", laboratory.picture(7))
    laboratory.put("2.png", was["2.png"][:50])
    (laboratory.source / "3.png").unlink()
    (outcome,) = laboratory.embed(prepared)
    assert outcome.by_reason == {"changed": 2, "unreadable": 1}
    laboratory.publish(prepared)
    for name, data in was.items():
        laboratory.put(name, data)
    again = laboratory.prepare()
    assert [shard.num_images for shard in again.shards] == [3]
    laboratory.embed(again)
    rows = rows_of(laboratory.publish(again))
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert laboratory.prepare().runs == ()


# --- what becomes of each image -----------------------------------------------------------------------


def test_each_image_gets_the_row_that_it_deserves(laboratory: Any) -> None:
    laboratory.put("a good.png", laboratory.picture(1, 48, 48))
    laboratory.put("b broken.png", b"this is no picture")
    laboratory.put("c same.png", laboratory.picture(1, 48, 48))
    laboratory.put("d changed.png", laboratory.picture(2))
    laboratory.put("e wide.png", laboratory.picture(3, 32, 40))
    laboratory.put("f gone.png", laboratory.picture(4))
    laboratory.put("g good.png", laboratory.picture(5))
    prepared = laboratory.prepare(shard_rows=7)
    laboratory.put("d changed.png", laboratory.picture(6))
    (laboratory.source / "f gone.png").unlink()
    (outcome,) = laboratory.embed(prepared)

    assert (outcome.job_id, outcome.index, outcome.won, outcome.resumed_at) == (*prepared.runs, 0, True, 0)
    assert outcome.by_status == {"ok": 2, "duplicate": 1, "failed": 4}
    assert outcome.by_reason == {"not_an_image": 1, "changed": 1, "not_square": 1, "unreadable": 1}

    archive = laboratory.publish(prepared)
    rows = rows_of(archive)
    reasons = {image_id: row["reason"] for image_id, row in rows.items()}
    assert reasons == {
        "a good.png": None,
        "b broken.png": "not_an_image",
        "c same.png": None,
        "d changed.png": "changed",
        "e wide.png": "not_square",
        "f gone.png": "unreadable",
        "g good.png": None,
    }
    assert "40" in rows["e wide.png"]["message"] and "run the same command again" in rows["d changed.png"]["message"]
    assert rows["c same.png"]["duplicate_of"] == "a good.png"
    assert (rows["a good.png"]["width"], rows["a good.png"]["height"]) == (48, 48)  # of the file, not of the network
    assert (rows["g good.png"]["width"], rows["g good.png"]["height"]) == (32, 32)
    for row in rows.values():
        measured = [row[name] for name in (*METRICS, "final_loss", "seconds", "num_steps")]
        if row["status"] == "ok":
            assert np.isfinite(measured).all()
        else:
            assert measured == [None] * len(measured)

    is_ok = np.array([row["status"] == "ok" for row in rows.values()])
    for name in RunWriter.open(laboratory.archive, outcome.job_id).arrays:
        values = archive.array(outcome.job_id, name)[:].reshape(len(rows), -1)
        assert np.isfinite(values[is_ok]).all()
        assert np.isnan(values[~is_ok]).all()
        assert (values[is_ok] == 0).all() == (name == "noise_00")  # of the one convolution that adds no noise
    codes = archive.codes(["a good.png", "c same.png", "g good.png"], "stylegan2_w_plus")
    np.testing.assert_array_equal(codes[0], codes[1])
    assert not np.allclose(codes[0], codes[2], atol=1e-3)


def test_what_was_done_to_pixels_is_counted_also_by_a_try_that_was_not_heard_of(laboratory: Any) -> None:
    clear = io.BytesIO()
    Image.new("RGBA", (48, 48), (9, 9, 9, 128)).save(clear, "PNG")
    for name in ("a.png", "b.png"):  # one and its copy
        laboratory.put(name, clear.getvalue())
    laboratory.put("c.png", laboratory.picture(1, 16, 16))
    laboratory.put("d.png", b"this is no picture")
    prepared = laboratory.prepare(shard_rows=4)
    for _ in range(2):
        (outcome,) = laboratory.embed(prepared)
        assert outcome.by_alteration == {"alpha_over_white": 2, "upsampled": 1}
        assert (outcome.by_status["failed"], outcome.by_reason) == (1, {"not_an_image": 1})
    altered = {name: row["altered"] for name, row in rows_of(laboratory.publish(prepared)).items()}
    assert altered == {"a.png": "alpha_over_white", "b.png": "alpha_over_white", "c.png": "upsampled", "d.png": None}


def failed_as(rows: dict[str, dict[str, Any]], *ids: str) -> set[tuple[str, str, bool]]:
    return {(rows[name]["status"], rows[name]["reason"], bool(rows[name]["message"])) for name in ids}


@pytest.mark.parametrize(("data", "reason"), [(b"<!DOCTYPE html><html>404</html>", "not_an_image"), (b"", "empty")])
@pytest.mark.parametrize("shard_rows", [1, 3, 16])
def test_copies_of_a_bad_image_are_bad_themselves(laboratory: Any, data: bytes, reason: str, shard_rows: int) -> None:
    """Whichever shard their original is in, and whether that is worked on before, after or elsewhere."""
    laboratory.put("0.png", laboratory.picture(0))
    laboratory.put("5.png", laboratory.picture(0))
    bad = [f"{number}.png" for number in (1, 2, 3, 4)]
    for name in bad:
        laboratory.put(name, data)
    prepared = laboratory.prepare(shard_rows=shard_rows)
    outcomes = [laboratory.worker(prepared)(shard) for shard in reversed(prepared.shards)]
    assert sum(outcome.by_status.get("failed", 0) for outcome in outcomes) == 4
    assert sum(outcome.by_reason.get(reason, 0) for outcome in outcomes) == 4
    archive = laboratory.publish(prepared)
    rows = rows_of(archive)
    assert failed_as(rows, *bad) == {("failed", reason, True)}
    assert {rows[name]["duplicate_of"] for name in bad} == {None}
    assert (rows["5.png"]["status"], rows["5.png"]["duplicate_of"]) == ("duplicate", "0.png")
    about = archive.describe()["methods"]["stylegan2_w_plus"]
    assert [about[status] for status in ("ok", "failed", "duplicate")] == [1, 4, 1] and about["fits"] == ["refuse"]
    laboratory.put("6.png", data)  # of what failed in an earlier run
    assert failed_as(rows_of(laboratory.invert()), "6.png") == {("failed", reason, True)}


def test_a_copy_stands_in_for_an_original_that_is_not_there_any_more(laboratory: Any) -> None:
    """In its own shard at once; in another one nobody knows of it, and the next command makes up for it."""
    laboratory.fill(1)
    for name in ("1.png", "2.png", "3.png", "4.png"):
        laboratory.put(name, laboratory.picture(1))
    prepared = laboratory.prepare(shard_rows=4)
    laboratory.put("1.png", laboratory.picture(2))
    laboratory.embed(prepared)
    rows = rows_of(laboratory.publish(prepared))
    found = {name: (row["status"], row["reason"], row["duplicate_of"]) for name, row in rows.items()}
    assert found == {
        "0.png": ("ok", None, None),
        "1.png": ("failed", "changed", None),
        "2.png": ("ok", None, None),
        "3.png": ("duplicate", None, "2.png"),
        "4.png": ("failed", "changed", "1.png"),
    }
    archive = laboratory.invert()
    assert [row["image_id"] for row in archive.rows(history=True).to_pylist()[5:]] == ["1.png", "4.png"]
    assert np.isfinite(archive.codes(list(rows), "stylegan2_w_plus")).all()
    assert laboratory.prepare().runs == ()


def test_copies_of_an_image_whose_loss_is_not_finite_fail_with_it(laboratory: Any) -> None:
    laboratory.fill(1)
    laboratory.put("1.png", laboratory.picture(0))
    archive = laboratory.invert(methods=(method("stylegan2_w_plus", num_steps=4, learning_rate=1e37),))
    assert failed_as(rows_of(archive), "0.png", "1.png") == {("failed", "non_finite_loss", True)}


@pytest.mark.parametrize("order", [1, -1])
def test_copies_in_other_shards_count_as_failed_with_their_original(laboratory: Any, order: int) -> None:
    for name in ("0.png", "1.png", "2.png"):
        laboratory.put(name, laboratory.picture(0))
    laboratory.put("3.png", b"no picture")
    methods = (method("stylegan2_w_plus", num_steps=4, learning_rate=1e37),)
    prepared = laboratory.prepare(methods=methods, shard_rows=2)
    worker = laboratory.worker(prepared)
    written = [worker(shard) for shard in prepared.shards[::order]][::order]
    assert [one.by_status for one in written] == [{"failed": 2}, {"duplicate": 1, "failed": 1}]
    first, other = with_failed_copies(laboratory.archive, written)
    assert first == written[0]
    assert (other.by_status, other.by_reason) == ({"failed": 2}, {"non_finite_loss": 1, "not_an_image": 1})
    archive = laboratory.publish(prepared)
    assert with_failed_copies(laboratory.archive, written) == [first, other]
    assert failed_as(rows_of(archive), "2.png") == {("failed", "non_finite_loss", True)}


def test_copies_of_good_images_in_other_shards_stay_copies(laboratory: Any) -> None:
    laboratory.put("0.png", laboratory.picture(0))
    laboratory.put("1.png", b"no picture")
    laboratory.put("2.png", laboratory.picture(0))
    prepared = laboratory.prepare(shard_rows=2)
    written = laboratory.embed(prepared)
    assert with_failed_copies(laboratory.archive, written) == written


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)


def test_what_no_reader_was_installed_for_is_tried_again_once_there_is_one(
    laboratory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    laboratory.put("a.heic", HEIC)
    laboratory.put("b.png", b"no picture")
    with monkeypatch.context() as bare:
        bare.setattr(PictureFormat, "is_installed", False)
        rows = rows_of(laboratory.invert())
        assert [row["reason"] for row in rows.values()] == ["no_heic_reader", "not_an_image"]
        assert "run the same command again" in rows["a.heic"]["message"]
        assert laboratory.prepare().runs == ()
    monkeypatch.setattr(PictureFormat, "is_installed", True)
    again = laboratory.prepare()
    assert [shard.num_images for shard in again.shards] == [1]
    laboratory.embed(again)
    rows = rows_of(laboratory.publish(again))
    assert rows["a.heic"]["reason"] in ("corrupt", "truncated")
    assert laboratory.prepare().runs == ()


def test_what_was_not_read_is_tried_again_once_by_a_reader_that_reads_more(
    laboratory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    laboratory.put("a.jxl", b"\xff\x0a" + bytes(50))
    laboratory.put("b.png", b"no picture")
    laboratory.put("c.png", laboratory.picture(0))
    assert [row["reason"] for row in rows_of(laboratory.invert()).values()] == [
        "unsupported_format",
        "not_an_image",
        None,
    ]
    assert laboratory.prepare().runs == ()
    monkeypatch.setattr("tasks.pictures.formats.READERS_VERSION", READERS_VERSION + 1)
    again = laboratory.prepare()
    assert [shard.num_images for shard in again.shards] == [1]
    laboratory.embed(again)
    archive = laboratory.publish(again)
    assert [row["image_id"] for row in archive.rows(history=True).to_pylist()] == ["a.jxl", "b.png", "c.png", "a.jxl"]
    assert laboratory.prepare().runs == ()


def test_a_shard_of_bad_images_alone_is_written(laboratory: Any) -> None:
    laboratory.put("a.png", b"no picture")
    archive = laboratory.invert()
    assert [row["status"] for row in rows_of(archive).values()] == ["failed"]


def test_a_row_tells_time_steps_and_the_last_loss(laboratory: Any) -> None:
    laboratory.fill(3)
    prepared = laboratory.prepare(methods=SIX_STEPS)
    started = time.monotonic()
    (outcome,) = laboratory.embed(prepared, batch_size=2)
    wall = time.monotonic() - started
    archive = laboratory.publish(prepared)
    rows = rows_of(archive)
    trace = archive.trace(list(rows), "lsap_o_w_plus")
    loss = trace.values[:, :, trace.terms.index("loss")]
    assert trace.steps == (0, 2, 4, 5)
    assert [row["final_loss"] for row in rows.values()] == loss[:, -1].tolist()
    assert [row["num_steps"] for row in rows.values()] == [6, 6, 6]
    seconds = [row["seconds"] for row in rows.values()]
    assert min(seconds) > 0 and seconds[0] == seconds[1] != seconds[2]  # a batch's time over its size
    assert sum(seconds) < outcome.seconds < wall


@pytest.mark.parametrize("keep", ["float32", "float16", "none"])
def test_what_is_measured_belongs_to_what_is_written(laboratory: Any, keep: KeepNoise) -> None:
    laboratory.fill(3)
    archive = laboratory.invert(worker={"batch_size": 2}, methods=(replace(laboratory.methods[0], keep_noise=keep),))
    rows = rows_of(archive)
    codes = torch.from_numpy(archive.codes(list(rows), "stylegan2_w_plus"))
    noise: Noise = "constant"
    if keep == "none":
        with pytest.raises(ArchiveKeyError, match="has no array noise_00"):
            archive.noise(list(rows), "stylegan2_w_plus")
    else:
        noise = [torch.from_numpy(maps)[:, None] for maps in archive.noise(list(rows), "stylegan2_w_plus")]
        assert archive.array(archive.runs[0].run_id, "noise_06").dtype == keep
    told = "constant" if keep == "none" else keep
    assert [row["noise"] for row in rows.values()] == 3 * [told]
    assert archive.describe()["methods"]["stylegan2_w_plus"]["noise"] == [told]
    with torch.no_grad():
        image = load_generator(laboratory.generator).generator.synthesize(codes, noise=noise)
    target = torch.stack([pixels_of((laboratory.source / name).read_bytes()) for name in rows])
    mse = (from_uint8(to_uint8(image)) - target).square().mean(dim=(1, 2, 3))
    np.testing.assert_allclose([row["mse"] for row in rows.values()], mse, rtol=1e-4)


def pixels_of(data: bytes) -> Tensor:
    return from_uint8(np.array(Image.open(io.BytesIO(data)))[None, :, :, None])[0]


# --- whose neighbour an image is does not matter ------------------------------------------------------


def test_an_image_gets_the_same_result_in_every_shard_and_batch(new_laboratory: Callable[[], Any]) -> None:
    first, second = new_laboratory(), new_laboratory()
    first.fill(5)
    alone = first.invert(methods=SIX_STEPS, shard_rows=2, worker={"batch_size": 1})
    first.put("3.png", b"no picture: the batches shift")
    together = second.invert(methods=SIX_STEPS, shard_rows=8, worker={"batch_size": 3})
    ids = ["0.png", "1.png", "2.png", "4.png"]
    one, other = (everything(archive, ids, "lsap_o_w_plus") for archive in (alone, together))
    for name, values in one.items():
        np.testing.assert_allclose(other[name], values, atol=1e-4, rtol=1e-4, err_msg=name)
    for image_id in ids:
        for name in METRICS:
            assert rows_of(together)[image_id][name] == pytest.approx(rows_of(alone)[image_id][name], abs=1e-4)


def test_the_seed_of_a_run_changes_what_an_image_gets(new_laboratory: Callable[[], Any]) -> None:
    first, second = new_laboratory(), new_laboratory()
    first.fill(1)
    one, other = first.invert(seed=0), second.invert(seed=1)
    found = [archive.codes(["0.png"], "stylegan2_w_plus") for archive in (one, other)]
    assert not np.allclose(*found, atol=1e-3)


def test_the_random_state_of_an_image_follows_from_seed_and_id() -> None:
    assert image_seed(0, "a.png") == 9156644118951487697  # half of SHA-256('0:a.png')[:8], for ever
    assert len({image_seed(seed, name) for seed in range(3) for name in ("a.png", "b.png", "é\udcff")}) == 9
    assert image_seed(1, "1.png") != image_seed(11, ".png")
    for name in map(str, range(100)):
        torch.Generator().manual_seed(image_seed(0, name))  # every value is one that torch takes


class ExplodingDistance:
    """The perceptual distance, but without a finite value for one target from some step on."""

    def __init__(self, inner: FeatureDistance, target: Tensor, after: int):
        self._inner = inner
        self._marked = inner.features(target)[0]
        self._left = after

    def features(self, images: Tensor) -> list[Tensor]:
        return self._inner.features(images)

    def distance(self, features: list[Tensor], target_features: list[Tensor]) -> Tensor:
        self._left -= 1
        values = self._inner.distance(features, target_features)
        is_marked = (target_features[0] - self._marked).flatten(1).abs().amax(dim=1) < 1e-4
        return values * torch.where(is_marked & torch.tensor(self._left < 0), torch.inf, 1.0)


def test_a_loss_that_is_not_finite_fails_its_image_alone(new_laboratory: Callable[[], Any]) -> None:
    quiet, loud = new_laboratory(), new_laboratory()
    quiet.fill(3)
    undisturbed = quiet.invert(methods=SIX_STEPS)
    prepared = loud.prepare(methods=SIX_STEPS)
    worker = loud.worker(prepared)
    target = pixels_of(loud.picture(1))[None]
    exploding = ExplodingDistance(worker.networks.perceptual, target, after=2)
    worker.networks = replace(worker.networks, perceptual=exploding)
    outcome = worker(prepared.shards[0])
    assert (outcome.by_status, outcome.by_reason) == ({"ok": 2, "failed": 1}, {"non_finite_loss": 1})
    archive = loud.publish(prepared)
    row = rows_of(archive)["1.png"]
    assert (row["status"], row["reason"], row["num_steps"]) == ("failed", "non_finite_loss", 6)
    assert "no longer finite at step 2 of 6" in row["message"]
    assert [row[name] for name in (*METRICS, "final_loss")] == [None] * 7
    with pytest.raises(ArchiveKeyError, match="no longer finite at step 2"):
        archive.codes(["1.png"], "lsap_o_w_plus")
    ids = ["0.png", "2.png"]
    assert_same_bits(*(everything(one, ids, "lsap_o_w_plus") for one in (archive, undisturbed)))


def test_a_learning_rate_beyond_all_measure_fails_images_and_not_the_shard(laboratory: Any) -> None:
    laboratory.fill(2)
    archive = laboratory.invert(methods=(method("stylegan2_w_plus", num_steps=4, learning_rate=1e37),))
    assert {row["reason"] for row in rows_of(archive).values()} == {"non_finite_loss"}


# --- interrupted and taken up again -------------------------------------------------------------------


class StoreWentAwayError(StoreUnavailableError):
    """What the store of a test answers from some moment on."""


def embed_until_interrupted(
    laboratory: Any, prepared: Any, monkeypatch: pytest.MonkeyPatch, *, saves: int, **worker: Any
) -> None:
    """Embed with a state saved after every step, and have the store fail after some saves."""
    put, left = Store.put, saves

    def put_some(self: Store, key: str, data: bytes) -> None:
        nonlocal left
        if left == 0:
            raise StoreWentAwayError("the store went away")
        left -= 1
        put(self, key, data)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", put_some)
        pool = LocalPool(lambda: laboratory.worker(prepared, save_every_seconds=0, **worker))
        with pytest.raises(StoreWentAwayError):
            pool.call("__call__", prepared.shards[0])


@pytest.mark.parametrize("saves", [1, 3, 5])
def test_interrupted_work_is_taken_up_bit_for_bit(
    new_laboratory: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, saves: int
) -> None:
    through, broken = new_laboratory(), new_laboratory()
    through.fill(2)
    wanted = through.invert(methods=SIX_STEPS)
    prepared = broken.prepare(methods=SIX_STEPS)
    embed_until_interrupted(broken, prepared, monkeypatch, saves=saves)
    assert RunWriter.open(broken.archive, prepared.runs[0]).missing_shards() == [0]

    assert broken.prepare(methods=SIX_STEPS).shards == prepared.shards
    (outcome,) = broken.embed(prepared)
    assert (outcome.resumed_at, outcome.won) == (saves, True)
    found = broken.publish(prepared)
    ids = ["0.png", "1.png"]
    assert_same_bits(*(everything(archive, ids, "lsap_o_w_plus") for archive in (found, wanted)))
    for image_id in ids:
        one, other = rows_of(found)[image_id], rows_of(wanted)[image_id]
        assert {name: one[name] for name in METRICS} == {name: other[name] for name in METRICS}
    assert not [key for key in broken.contents() if "_staging" in key]  # publishing cleans up


def test_finished_batches_are_not_done_again(
    new_laboratory: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    through, broken = new_laboratory(), new_laboratory()
    through.fill(5)
    through.put("bad.png", b"no picture")
    through.put("same.png", through.picture(1))
    asked: dict[str, Any] = {"methods": SIX_STEPS, "shard_rows": 7}
    wanted = through.invert(**asked, worker={"batch_size": 2})
    prepared = broken.prepare(**asked)
    embed_until_interrupted(broken, prepared, monkeypatch, saves=6 + 6 + 2, batch_size=2)
    kept = [key for key in broken.contents() if "_staging" in key]
    assert sorted(key.rsplit("/", 1)[1].split("-")[0] for key in kept) == ["finished", "finished", "state"]
    for name in ("0.png", "1.png"):  # what is done is not read again
        (broken.source / name).unlink()
    worker = broken.worker(prepared, batch_size=2)
    outcome = worker(prepared.shards[0])
    assert (outcome.num_known, outcome.resumed_at, outcome.by_status) == (4, 2, {"ok": 5, "failed": 1, "duplicate": 1})
    assert worker.progress() == 7
    assert not [key for key in broken.contents() if "finished" in key or "state" in key]
    found, ids = broken.publish(prepared), [f"{number}.png" for number in range(5)]
    assert_same_bits(*(everything(archive, ids, "lsap_o_w_plus") for archive in (found, wanted)))
    timeless = [
        {image_id: {**row, "seconds": None, "attempt": None} for image_id, row in rows_of(archive).items()}
        for archive in (found, wanted)
    ]
    assert timeless[0] == timeless[1]


def test_a_damaged_state_is_noticed_and_the_batch_begins_again(
    new_laboratory: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    through, broken = new_laboratory(), new_laboratory()
    through.fill(2)
    wanted = through.invert(methods=SIX_STEPS)
    prepared = broken.prepare(methods=SIX_STEPS)
    embed_until_interrupted(broken, prepared, monkeypatch, saves=3)
    store = RunWriter.open(broken.archive, prepared.runs[0]).store
    (key,) = (key for key in store.sizes() if "/state-" in key)
    data = bytearray(store.get(key))
    data[-5] ^= 1  # inside a tensor, where safetensors has no checksum
    store.put(key, bytes(data))
    (outcome,) = broken.embed(prepared)
    assert (outcome.resumed_at, outcome.won) == (0, True)
    assert "is damaged: the batch begins again" in caplog.text
    ids = ["0.png", "1.png"]
    assert_same_bits(*(everything(one, ids, "lsap_o_w_plus") for one in (broken.publish(prepared), wanted)))


def test_a_saved_state_is_never_taken_for_that_of_other_images(
    new_laboratory: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches shift when an image went bad; the states of the old ones then fit nobody."""
    through, broken = new_laboratory(), new_laboratory()
    through.fill(6)
    wanted = through.invert(methods=SIX_STEPS, shard_rows=6, worker={"batch_size": 2})
    prepared = broken.prepare(methods=SIX_STEPS, shard_rows=6)
    embed_until_interrupted(broken, prepared, monkeypatch, saves=3, batch_size=2)  # of [0, 1]
    (broken.source / "0.png").unlink()
    (outcome,) = broken.embed(prepared, batch_size=2)  # [1, 2], of the same shape, [3, 4], [5]
    assert (outcome.by_reason, outcome.resumed_at) == ({"unreadable": 1}, 0)
    found = broken.publish(prepared)
    ids = [f"{number}.png" for number in range(1, 6)]
    one, other = (everything(archive, ids, "lsap_o_w_plus") for archive in (found, wanted))
    for name, values in other.items():
        np.testing.assert_allclose(one[name], values, atol=1e-4, rtol=1e-4, err_msg=name)


def test_states_are_saved_as_often_as_asked_and_no_oftener(laboratory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    laboratory.fill(1)
    prepared = laboratory.prepare(methods=SIX_STEPS)
    keys: list[str] = []
    put = Store.put
    monkeypatch.setattr(Store, "put", lambda self, key, data: (keys.append(key), put(self, key, data))[1])
    laboratory.embed(prepared)
    assert not [key for key in keys if "state" in key]  # not within 300 seconds
    prepared = laboratory.prepare(methods=SIX_STEPS, seed=1)
    worker = laboratory.worker(prepared, save_every_seconds=0)
    worker(prepared.shards[0])
    states = [key for key in keys if "state" in key]
    assert len(states) == 5 and len(set(states)) == 1  # after the last step the result is kept in its place
    assert len([key for key in keys if "finished" in key]) == 1
    assert not [key for key in laboratory.contents() if "state" in key or "finished" in key]  # the shard is there


def test_progress_counts_images(laboratory: Any) -> None:
    laboratory.fill(3)
    laboratory.put("bad.png", b"no picture")
    prepared = laboratory.prepare(methods=SIX_STEPS, shard_rows=4)
    worker = laboratory.worker(prepared, batch_size=2)
    seen: list[float] = []
    perceptual = worker.networks.perceptual

    class Watched:
        features = staticmethod(perceptual.features)

        def distance(self, features: list[Tensor], target_features: list[Tensor]) -> Tensor:
            seen.append(worker.progress())
            return perceptual.distance(features, target_features)

    worker.networks = replace(worker.networks, perceptual=Watched())
    worker(prepared.shards[0])
    done_by_step = [2 * step / 6 for step in range(6)] + [3 + step / 6 for step in range(6)]  # the bad one comes last
    assert seen == pytest.approx(done_by_step)
    assert worker.progress() == 4


# --- encoders -----------------------------------------------------------------------------------------

FROM_ENCODER = method("lsap_o_w_plus_from_lsap_e", num_steps=6, record_every=2, sncd_weight=0.5)


def encoded(laboratory: Any, name: str, ids: list[str], *, passes: int = 1) -> Tensor:
    """What an encoder of the laboratory says of images, [N, K, w_dim]."""
    generator = load_generator(laboratory.generator).generator
    encoder = load_encoder(laboratory.encoders[name]).encoder
    target = torch.stack([pixels_of((laboratory.source / image_id).read_bytes()) for image_id in ids])
    return EncoderEmbedder(generator, encoder, EncoderSettings(num_passes=passes)).codes(target)


def test_an_encoder_gives_codes_and_nothing_that_an_optimization_leaves(
    laboratory: Any, tmp_path: Path, new_encoder: Callable[..., str]
) -> None:
    laboratory.encoders = {"e4e": new_encoder(tmp_path / "e4e.safetensors")}
    laboratory.fill(3)
    laboratory.put("bad.png", b"no picture")
    prepared = laboratory.prepare(methods=(METHODS["e4e"],))
    (outcome,) = laboratory.embed(prepared, batch_size=2)
    assert (outcome.by_status, outcome.resumed_at) == ({"ok": 3, "failed": 1}, 0)
    archive = laboratory.publish(prepared)
    rows = {image_id: row for image_id, row in rows_of(archive).items() if row["status"] == "ok"}
    ids = list(rows)
    np.testing.assert_allclose(archive.codes(ids, "e4e"), encoded(laboratory, "e4e", ids), atol=1e-4, rtol=1e-4)
    for row in rows.values():
        assert (row["num_steps"], row["final_loss"]) == (1, None)
        assert row["seconds"] > 0 and all(np.isfinite(row[name]) for name in METRICS)
    with pytest.raises(ArchiveKeyError):
        archive.trace(ids, "e4e")
    with pytest.raises(ArchiveKeyError):
        archive.noise(ids, "e4e")
    assert archive.runs[0].config["noise"] == "constant"
    assert not [key for key in laboratory.contents() if "/noise_" in key and "/c/" in key]


def test_restyle_takes_its_passes(laboratory: Any, tmp_path: Path, new_encoder: Callable[..., str]) -> None:
    laboratory.encoders = {"restyle_e4e": new_encoder(tmp_path / "r.safetensors", is_iterative=True)}
    laboratory.fill(2)
    archive = laboratory.invert(methods=(method("restyle_e4e", num_passes=3),))
    ids = ["0.png", "1.png"]
    wanted = encoded(laboratory, "restyle_e4e", ids, passes=3)
    np.testing.assert_allclose(archive.codes(ids, "restyle_e4e"), wanted, atol=1e-3, rtol=1e-3)
    assert [row["num_steps"] for row in rows_of(archive).values()] == [3, 3]


def test_a_code_that_is_not_finite_fails_its_image_alone(
    laboratory: Any, tmp_path: Path, new_encoder: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    laboratory.encoders = {"e4e": new_encoder(tmp_path / "e4e.safetensors")}
    laboratory.fill(2)
    spoiled = pixels_of(laboratory.picture(1))
    offsets = Encoder.offsets

    def some_not_finite(self: Encoder, images: Tensor, **options: Any) -> Tensor:
        is_spoiled = (images == spoiled).flatten(1).all(dim=1)[:, None, None]
        return torch.where(is_spoiled, torch.nan, offsets(self, images, **options))

    monkeypatch.setattr(Encoder, "offsets", some_not_finite)
    archive = laboratory.invert(methods=(METHODS["e4e"],))
    good, bad = rows_of(archive).values()
    assert (good["status"], bad["status"], bad["reason"]) == ("ok", "failed", "non_finite_code")
    assert "no longer finite in pass 1 of 1" in bad["message"]


def test_an_optimization_starts_where_its_encoder_says(
    laboratory: Any, tmp_path: Path, new_encoder: Callable[..., str]
) -> None:
    laboratory.encoders = {"lsap_e": new_encoder(tmp_path / "lsap_e.safetensors")}
    laboratory.fill(2)
    still = FROM_ENCODER.with_settings({"num_steps": 1})  # the rate begins at 0: this step moves nothing
    archive = laboratory.invert(methods=(still,))
    ids = ["0.png", "1.png"]
    codes = archive.codes(ids, still.name)
    np.testing.assert_allclose(codes, encoded(laboratory, "lsap_e", ids), atol=1e-4, rtol=1e-4)
    assert len(archive.noise(ids, still.name)) == 7
    moved = laboratory.invert(methods=(FROM_ENCODER,))
    assert not np.allclose(moved.codes(ids, FROM_ENCODER.name), codes, atol=1e-3)


def test_work_from_an_encoder_is_taken_up_where_it_stopped(
    new_laboratory: Callable[[], Any],
    tmp_path: Path,
    new_encoder: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    through, broken = new_laboratory(), new_laboratory()
    through.encoders = broken.encoders = {"lsap_e": new_encoder(tmp_path / "lsap_e.safetensors")}
    through.fill(2)
    wanted = through.invert(methods=(FROM_ENCODER,))
    prepared = broken.prepare(methods=(FROM_ENCODER,))
    embed_until_interrupted(broken, prepared, monkeypatch, saves=3)
    (outcome,) = broken.embed(prepared)
    assert outcome.resumed_at == 3
    ids = ["0.png", "1.png"]
    found = broken.publish(prepared)
    assert_same_bits(*(everything(archive, ids, FROM_ENCODER.name) for archive in (found, wanted)))


def test_a_worker_refuses_an_encoder_that_was_exchanged(
    laboratory: Any, tmp_path: Path, new_encoder: Callable[..., str]
) -> None:
    laboratory.encoders = {"e4e": new_encoder(tmp_path / "one.safetensors")}
    laboratory.fill(1)
    prepared = laboratory.prepare(methods=(METHODS["e4e"],))
    others = {"e4e": new_encoder(tmp_path / "other.safetensors", seed=1)}
    with pytest.raises(CheckpointError, match=r"other\.safetensors holds encoder .*: run the same command again"):
        laboratory.embed(prepared, encoders=others)


# --- images that end where they are near enough -------------------------------------------------------


def near_at(laboratory: Any, count: int) -> Method:
    """A method that ends where some of the images are within its steps, and others never."""
    through = method("lsap_o_w_plus", num_steps=8, record_every=2, sncd_weight=0.5, exploration=0.5, learning_rate=0.5)
    trace = laboratory.invert(methods=(through,), shard_rows=count).trace(
        [f"{place}.png" for place in range(count)], through.name
    )
    lowest = np.sort(trace.values[:, :, trace.terms.index("lpips")].min(axis=1))
    return through.with_settings({"stop_at_lpips": float(lowest[count // 2])})


def test_images_that_are_near_enough_leave_their_rows_to_the_next_ones(
    new_laboratory: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows tell the steps that each took; who goes on with a shard that was interrupted ends with the same bits."""
    first, through, broken = new_laboratory(), new_laboratory(), new_laboratory()
    first.fill(6)
    ending = near_at(first, 6)
    first.put("3 bad.png", b"no picture")
    asked: dict[str, Any] = {"methods": (ending,), "shard_rows": 7}
    wanted = through.invert(**asked, worker={"batch_size": 2})
    ids = [f"{place}.png" for place in range(6)]
    rows = rows_of(wanted)
    trace = wanted.trace(ids, ending.name)
    values = {term: trace.values[:, :, trace.terms.index(term)] for term in ("lpips", "loss")}
    for place, image_id in enumerate(ids):
        taken = [step for step, lpips in zip(trace.steps, values["lpips"][place], strict=True) if np.isfinite(lpips)]
        is_near = values["lpips"][place, len(taken) - 1] <= ending.settings.stop_at_lpips
        assert rows[image_id]["num_steps"] == (taken[-1] if is_near else 8)
        assert rows[image_id]["final_loss"] == values["loss"][place, len(taken) - 1]
        assert rows[image_id]["seconds"] > 0
    assert len({row["num_steps"] for row in rows.values()} - {None}) > 1

    prepared = broken.prepare(**asked)
    embed_until_interrupted(broken, prepared, monkeypatch, saves=12, batch_size=2)
    kept = [key.rsplit("/", 1)[1].split("-")[0] for key in broken.contents() if "_staging" in key]
    assert kept.count("state") == 1 and "finished" in kept
    worker = broken.worker(prepared, batch_size=2)
    outcome = worker(prepared.shards[0])
    assert outcome.by_status == {"ok": 6, "failed": 1} and 0 < outcome.num_known < 6 and outcome.resumed_at > 0
    assert worker.progress() == 7
    found = broken.publish(prepared)
    assert_same_bits(*(everything(archive, ids, ending.name) for archive in (found, wanted)))
    assert not [key for key in broken.contents() if "finished" in key or "state" in key]


# --- content boxes ------------------------------------------------------------------------------------


def test_images_are_placed_into_the_content_box(new_laboratory: Callable[[], Any], tmp_path: Path) -> None:
    laboratory = new_laboratory()
    laboratory.generator = str(tmp_path / "boxed.safetensors")
    config = GeneratorConfig(64, (4,) * 5, z_dim=3, w_dim=4, num_mapping_layers=1, image_channels=1)
    save_generator(Generator(config), laboratory.generator)
    box = (8, 40, 16, 48)
    laboratory.put("a.png", laboratory.picture(1, 32, 32))
    laboratory.put("b wide.png", laboratory.picture(2, 32, 48))
    methods = (method("stylegan2_w_plus", num_steps=2),)
    prepared = laboratory.prepare(methods=methods, content_box=box)
    laboratory.embed(prepared)
    archive = laboratory.publish(prepared)
    assert [row["reason"] for row in rows_of(archive).values()] == [None, "not_square"]
    preview = laboratory.worker(prepared).preview({"stylegan2_w_plus": images_of(archive)})["stylegan2_w_plus"]
    original = read_png(preview["a.png"].original)
    assert original.shape == (64, 64)
    np.testing.assert_array_equal(original[8:40, 16:48], read_png(laboratory.picture(1)))
    assert original.sum() == original[8:40, 16:48].sum()  # black around it


# --- previews -----------------------------------------------------------------------------------------


def images_of(archive: Any) -> list[dict[str, Any]]:
    return archive.rows(["image_id", "uri", "digest"]).to_pylist()


def read_png(data: bytes) -> np.ndarray:
    assert data.startswith(b"\x89PNG")
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


def test_a_preview_shows_what_the_archive_holds(laboratory: Any) -> None:
    laboratory.fill(3)
    prepared = laboratory.prepare(shard_rows=2)
    laboratory.embed(prepared)
    archive = laboratory.publish(prepared)
    images = images_of(archive)[::-1]
    previews = laboratory.worker(prepared).preview({"stylegan2_w_plus": images})["stylegan2_w_plus"]
    assert list(previews) == ["2.png", "1.png", "0.png"]
    codes = torch.from_numpy(archive.codes(list(previews), "stylegan2_w_plus"))
    noise = [torch.from_numpy(maps)[:, None] for maps in archive.noise(list(previews), "stylegan2_w_plus")]
    with torch.no_grad():
        wanted = load_generator(laboratory.generator).generator.synthesize(codes, noise=noise)
    for index, (name, preview) in enumerate(previews.items()):
        original, reconstruction, difference = map(
            read_png, (preview.original, preview.reconstruction, preview.difference)
        )
        assert original.shape == reconstruction.shape == difference.shape == (32, 32)
        np.testing.assert_array_equal(original, read_png((laboratory.source / name).read_bytes()))
        assert np.abs(reconstruction - to_uint8(wanted)[index, :, :, 0].astype(int)).max() <= 1
        assert np.abs(difference - np.abs(original - reconstruction)).max() <= 2
        assert difference.max() > 50


def test_a_preview_of_an_encoder_has_the_generators_noise(
    laboratory: Any, tmp_path: Path, new_encoder: Callable[..., str]
) -> None:
    laboratory.encoders = {"e4e": new_encoder(tmp_path / "e4e.safetensors")}
    laboratory.fill(2)
    prepared = laboratory.prepare(methods=(METHODS["e4e"],))
    laboratory.embed(prepared)
    archive = laboratory.publish(prepared)
    digest = archive.runs[0].method_digest
    previews = laboratory.worker(prepared).preview({digest: images_of(archive)})[digest]
    codes = torch.from_numpy(archive.codes(list(previews), "e4e"))
    with torch.no_grad():
        wanted = load_generator(laboratory.generator).generator.synthesize(codes)
    for index, preview in enumerate(previews.values()):
        found = read_png(preview.reconstruction)
        assert np.abs(found - to_uint8(wanted)[index, :, :, 0].astype(int)).max() <= 1


def test_a_preview_leaves_out_originals_that_are_gone_or_others_now(laboratory: Any) -> None:
    laboratory.fill(3)
    prepared = laboratory.prepare()
    laboratory.embed(prepared)
    images = images_of(laboratory.publish(prepared))
    worker = laboratory.worker(prepared)
    (laboratory.source / "0.png").unlink()
    laboratory.put("1.png", laboratory.picture(9))
    assert list(worker.preview({"stylegan2_w_plus": images})["stylegan2_w_plus"]) == ["2.png"]
    assert worker.preview({"stylegan2_w_plus": images[:2]}) == {"stylegan2_w_plus": {}}


def test_a_worker_needs_the_anchor_that_it_is_told(laboratory: Any) -> None:
    laboratory.fill(1)
    prepared = laboratory.prepare()
    with pytest.raises(FileNotFoundError, match=r"anchors/\w+\.npz"):
        laboratory.worker(prepared, anchor=AnchorOptions(num_samples=65))


def test_a_run_that_is_not_there_is_refused(laboratory: Any) -> None:
    laboratory.fill(1)
    worker: EmbedWorker = laboratory.worker(laboratory.prepare())
    with pytest.raises(FileNotFoundError, match="has no run nothing-1"):
        worker(Shard("nothing-1", "nothing", 0, 1))


def test_without_judge_and_identity_their_columns_are_empty(laboratory: Any) -> None:
    laboratory.networks = NetworkChoice("digits-features", "digits-features")
    laboratory.fill(1)
    (row,) = rows_of(laboratory.invert()).values()
    assert (row["status"], row["lpips_judge"], row["identity_similarity"]) == ("ok", None, None)
    assert row["lpips"] > 0
    assert open_archive(laboratory.archive).runs[0].config["networks"]["judge"] is None
