"""Editing an archive shard by shard: what is planned, what is left, what comes out, what is refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from domains.network_files import save_network
from lsap_archive import (
    ArchiveKeyError,
    ArchiveMismatchError,
    CorruptArchiveError,
    IncompleteRunError,
    RunWriter,
    give_up_unfinished,
    open_archive,
    verify_archive,
)
from lsap_core.errors import ConfigError, MissingWeightsError
from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.images import to_uint8
from lsap_core.perceptual.features import FeatureNet, FeatureNetConfig
from lsap_core.presets import method
from tasks.archived.rendering import Renderer, Stored, shift_of
from tasks.editing.chosen import check_edits
from tasks.editing.plan import EditingStage
from tasks.errors import SourceError
from tasks.weights.generators import GeneratorFile, load_generator, save_generator
from tasks.weights.networks import EMBEDDED, NetworkChoice
from tasks.weights.published import Published

OPTIMIZED = "stylegan2_w_plus"
SLIGHT = {"direction": "right", "strength": 0.5}


def codes(archive: Any, name: str, count: int) -> np.ndarray:
    found: np.ndarray = archive.codes([f"{number}.png" for number in range(count)], name)
    return found


def test_originals_that_are_nowhere_are_told_before_anything_is_edited(desk: Any) -> None:
    desk.laboratory.fill(1)
    desk.laboratory.invert()
    with pytest.raises(SourceError, match="nothing is at /nowhere/photos"):
        desk.plan(desk.request({"slight": SLIGHT}, source="/nowhere/photos"))


def test_a_strength_moves_codes_along_the_direction_and_0_keeps_every_bit(desk: Any) -> None:
    desk.laboratory.fill(6)
    desk.laboratory.invert()
    archive, results = desk.edit({"slight": SLIGHT, "none": {"direction": "right", "strength": 0}})
    before = codes(archive, OPTIMIZED, 6)
    moved = codes(archive, f"{OPTIMIZED}/slight", 6) - before
    np.testing.assert_allclose(moved, np.broadcast_to(0.5 * np.eye(1, 8), moved.shape), atol=1e-6)
    kept = codes(archive, f"{OPTIMIZED}/none", 6)
    np.testing.assert_array_equal(kept.view(np.int32), before.view(np.int32))
    assert [result.by_status for result in results] == [{"ok": 4}, {"ok": 2}] * 2
    assert verify_archive(desk.laboratory.archive).is_sound


def test_images_with_alpha_are_inverted_and_edited_with_it(
    desk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sees_alpha = tmp_path / "rgba-features.safetensors"
    save_network(sees_alpha, FeatureNet(FeatureNetConfig(32, image_channels=4)))
    monkeypatch.setitem(EMBEDDED, "rgba-features", (sees_alpha, FeatureNet))
    laboratory = desk.laboratory
    laboratory.networks = NetworkChoice("rgba-features", "rgba-features")
    laboratory.generator = str(tmp_path / "rgba.safetensors")
    config = GeneratorConfig(32, (8, 8, 8, 8), z_dim=6, w_dim=12, image_channels=4)
    save_generator(Generator(config), laboratory.generator)
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 4)).astype(np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    laboratory.put("0.png", file.getvalue())
    laboratory.put("1 opaque.png", laboratory.picture(1))
    prepared = laboratory.prepare()
    laboratory.embed(prepared)
    archive = laboratory.publish(prepared)
    rows = archive.rows(["image_id", "uri", "digest", "status", "altered"]).to_pylist()
    assert [(row["status"], row["altered"]) for row in rows] == [("ok", "")] * 2
    shown = laboratory.worker(prepared).preview({OPTIMIZED: rows})[OPTIMIZED]["0.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(shown.original))), pixels)
    assert Image.open(io.BytesIO(shown.difference)).mode == "RGB"
    archive, _ = desk.edit({"channel": {"style_channel": [4, 3], "strength": 6}}, keep_images=True)
    edited = [Image.open(io.BytesIO(png)) for png in archive.images(["0.png", "1 opaque.png"], f"{OPTIMIZED}/channel")]
    assert [(one.mode, one.size) for one in edited] == [("RGBA", (32, 32))] * 2


def test_an_edit_in_s_changes_images_and_not_codes(desk: Any) -> None:
    desk.laboratory.fill(3)
    desk.laboratory.invert()
    channel = {"style_channel": [4, 3], "strength": 6}
    archive, _ = desk.edit({"channel": channel, "both": {"sequence": [channel, SLIGHT]}}, keep_images=True)
    ids = [f"{number}.png" for number in range(3)]
    before, generator = codes(archive, OPTIMIZED, 3), load_generator(desk.laboratory.generator).generator.freeze()
    np.testing.assert_array_equal(codes(archive, f"{OPTIMIZED}/channel", 3), before)
    assert np.abs(codes(archive, f"{OPTIMIZED}/both", 3) - before).max() == pytest.approx(0.5, abs=1e-6)
    shift = {4: 6 * torch.eye(8)[3:4]}
    maps = [torch.from_numpy(one)[:, None] for one in archive.noise(ids, OPTIMIZED)]
    for edit in ("channel", "both"):
        edited = torch.from_numpy(codes(archive, f"{OPTIMIZED}/{edit}", 3))
        with torch.no_grad():
            wanted = generator.synthesize(edited, noise=maps, style_shift=shift)
            assert not torch.allclose(wanted, generator.synthesize(edited, noise=maps), atol=0.01)
        kept = [np.asarray(Image.open(io.BytesIO(png))) for png in archive.images(ids, f"{OPTIMIZED}/{edit}")]
        np.testing.assert_array_equal(np.stack(kept), to_uint8(wanted)[..., 0])
        stored = Stored.of_images(Renderer(generator), archive, ids, f"{OPTIMIZED}/{edit}")
        assert torch.equal(stored.render(), wanted)
    assert verify_archive(desk.laboratory.archive).is_sound


@pytest.mark.parametrize(
    "told",
    [
        {"4": {"channels": [8], "values": [1.0], "width": 8}},
        {"4": {"channels": [-1], "values": [1.0], "width": 8}},
        {"4": {"channels": [0], "values": [], "width": 8}},
        {"4": {"channels": [0], "values": [1.0], "width": 10**12}},
        {"four": {"channels": [0], "values": [1.0], "width": 8}},
        {"4": {"channels": [0], "values": ["far"], "width": 8}},
        {"4": [0, 1.0]},
        [4],
    ],
    ids=str,
)
def test_a_shift_that_makes_no_sense_is_refused_before_anything_is_made_of_it(told: Any) -> None:
    with pytest.raises(CorruptArchiveError, match="the style shift of an edit makes no sense"):
        shift_of({"style_shift": told})


def test_what_has_no_code_of_its_own_is_told_in_its_row(desk: Any) -> None:
    laboratory = desk.laboratory
    laboratory.put("a.png", laboratory.picture(1))
    laboratory.put("b broken.png", b"this is no picture")
    laboratory.put("c same.png", laboratory.picture(1))
    laboratory.invert()
    archive, (result,) = desk.edit({"slight": SLIGHT})
    assert result.by_status == {"ok": 1, "failed": 1, "duplicate": 1} and result.by_reason == {"not_inverted": 1}
    rows = {row["image_id"]: row for row in archive.rows().to_pylist() if row["edit"] == "slight"}
    assert rows["b broken.png"]["message"].startswith(f"{OPTIMIZED} has no code of this image (not_an_image")
    assert (rows["a.png"]["width"], rows["a.png"]["strength"]) == (32, 0.5)
    pair = archive.codes(["a.png", "c same.png"], f"{OPTIMIZED}/slight")
    np.testing.assert_array_equal(pair[0], pair[1])


def test_a_duplicate_of_a_bad_image_is_no_duplicate_in_an_edit(desk: Any) -> None:
    """Its row says so where it was written before schema version 4."""
    laboratory = desk.laboratory
    laboratory.fill(3)
    run = RunWriter.open(laboratory.archive, laboratory.prepare().runs[0])
    rows = {
        "status": ["ok", "failed", "duplicate"],
        "reason": [None, "truncated", None],
        "duplicate_of": [None, None, "1.png"],
    }
    arrays = {name: np.zeros((3, *array.item_shape), np.float32) for name, array in run.arrays.items()}
    assert run.write_shard(0, arrays, pa.table(rows), "1") and run.publish({})
    archive, (result,) = desk.edit({"slight": SLIGHT})
    assert (result.by_status, result.by_reason) == ({"ok": 1, "failed": 2}, {"not_inverted": 2})
    assert archive.rows().column("status").to_pylist() == ["ok", "failed", "failed"] * 2


def test_a_second_plan_is_empty_and_new_images_alone_are_left(desk: Any) -> None:
    desk.laboratory.fill(3)
    desk.laboratory.invert()
    desk.edit({"slight": SLIGHT})
    request = desk.request({"slight": SLIGHT})
    assert desk.plan(request).shards == () and desk.plan(request).runs == ()
    desk.laboratory.fill(5)
    desk.laboratory.invert()
    (shard,) = desk.plan(request, start=False).shards
    assert shard.num_images == 2
    archive, _ = desk.edit({"slight": SLIGHT})
    np.testing.assert_allclose(
        codes(archive, f"{OPTIMIZED}/slight", 5)[:, :, 0] - codes(archive, OPTIMIZED, 5)[:, :, 0], 0.5, atol=1e-6
    )
    assert archive.describe()["edits"][f"{OPTIMIZED}/slight"]["runs"] == 2


def test_an_edit_stopped_halfway_is_gone_on_with(desk: Any) -> None:
    desk.laboratory.fill(6)
    desk.laboratory.invert()
    request = desk.request({"slight": SLIGHT}, keep_images=True)
    prepared = desk.plan(request)
    desk.worker(request)(prepared.shards[0])
    assert open_archive(desk.laboratory.archive).edits == []
    again = desk.plan(request)
    assert list(again.shards) == [prepared.shards[1]] and again.runs == prepared.runs
    late = desk.worker(request)
    assert late(again.shards[0]).won and not late(again.shards[0]).won
    archive = desk.publish(again)
    assert len(archive.images([f"{number}.png" for number in range(6)], f"{OPTIMIZED}/slight")) == 6


def test_an_edit_that_was_given_up_is_planned_anew(desk: Any) -> None:
    desk.laboratory.fill(6)
    desk.laboratory.invert()
    request = desk.request({"right": {"direction": "right", "strength": 1.0}})
    (first,) = desk.plan(request).jobs
    worker = desk.worker(request)
    worker(first.shards[0])
    give_up_unfinished(desk.laboratory.archive, [first.job_id])
    stage = EditingStage(request)
    with pytest.raises(IncompleteRunError, match=f"run {first.job_id} was given up while it was worked on"):
        stage.publish(first.job_id)
    (again,) = stage.jobs()
    assert again.job_id == f"{first.job_id}.2" and len(again.shards) == 2
    for shard in again.shards:
        worker(shard)
    stage.publish(again.job_id)
    assert list(EditingStage(request).jobs()) == []
    archive = open_archive(desk.laboratory.archive)
    assert archive.sql("select count(*) as n from latest where method like '%/right'").to_pylist() == [{"n": 6}]
    staged = f"runs/{again.job_id}/_staging/00000/late.0/rows"
    desk.laboratory.store.put(staged, b"left by a kill")
    assert list(EditingStage(request).jobs()) == [] and not desk.laboratory.store.exists(staged)
    assert verify_archive(desk.laboratory.archive).is_sound


def test_another_strength_is_another_edit_and_the_newer_counts(desk: Any) -> None:
    desk.laboratory.fill(2)
    desk.laboratory.invert()
    first, _ = desk.edit({"slight": SLIGHT})
    second, _ = desk.edit({"slight": {**SLIGHT, "strength": 2.0}})
    before = codes(second, OPTIMIZED, 2)
    np.testing.assert_allclose((codes(second, f"{OPTIMIZED}/slight", 2) - before)[..., 0], 2.0, atol=1e-6)
    digests = {run.method_digest for run in second.runs if run.subject is not None}
    older = next(run.method_digest for run in first.runs if run.subject is not None)
    assert len(digests) == 2
    np.testing.assert_allclose((codes(second, older, 2) - before)[..., 0], 0.5, atol=1e-6)


def test_the_same_direction_by_another_path_is_the_same_edit(desk: Any, tmp_path: Path) -> None:
    desk.laboratory.fill(2)
    desk.laboratory.invert()
    desk.edit({"slight": SLIGHT})
    copy = tmp_path / "copy.npy"
    copy.write_bytes(Path(desk.directions["right"]).read_bytes())
    assert desk.plan(desk.request({"slight": {**SLIGHT, "direction": str(copy)}})).shards == ()


def test_edits_lead_to_codes_of_other_images_of_the_method(desk: Any) -> None:
    desk.laboratory.fill(5)
    desk.laboratory.invert()
    partners = {f"{number}.png": f"{4 - number}.png" for number in range(5)}
    archive, _ = desk.edit(
        {
            "middle": {"interpolate_to": partners, "weight": 0.5},
            "mixed": {"mix_with": "3.png", "layers": [2, 4]},
            "both": {"sequence": [SLIGHT, {"mix_with": "3.png", "layers": [2, 4]}]},
        }
    )
    before = codes(archive, OPTIMIZED, 5)
    np.testing.assert_allclose(codes(archive, f"{OPTIMIZED}/middle", 5), (before + before[::-1]) / 2, atol=1e-6)
    mixed = codes(archive, f"{OPTIMIZED}/mixed", 5)
    np.testing.assert_array_equal(mixed[:, 2:4], np.broadcast_to(before[3, 2:4], mixed[:, 2:4].shape))
    np.testing.assert_array_equal(mixed[:, :2], before[:, :2])
    both = codes(archive, f"{OPTIMIZED}/both", 5)
    np.testing.assert_array_equal(both[:, 2:4], mixed[:, 2:4])
    np.testing.assert_allclose((both - before)[:, :2, 0], 0.5, atol=1e-6)
    run = next(run for run in archive.runs if run.method == f"{OPTIMIZED}/mixed")
    assert set(run.config["others"]) == {"3.png"} and run.subject is not None and run.subject.strength is None


def test_an_image_whose_edited_code_is_not_finite_gets_a_row(desk: Any, tmp_path: Path) -> None:
    desk.laboratory.fill(2)
    desk.laboratory.invert()
    np.save(tmp_path / "huge.npy", np.full((1, 8), 3e38, np.float32))
    archive, (result,) = desk.edit(
        {"huge": {"direction": str(tmp_path / "huge.npy"), "strength": 10}}, keep_images=True
    )
    assert result.by_reason == {"non_finite_code": 2}
    with pytest.raises(ArchiveKeyError, match="no longer finite after edit huge: take a smaller strength"):
        archive.images(["0.png"], f"{OPTIMIZED}/huge")


def test_inversions_are_planned_as_if_there_were_no_edits(desk: Any) -> None:
    desk.laboratory.fill(3)
    archive = desk.laboratory.invert()
    (run,) = archive.runs
    desk.edit({"slight": SLIGHT})
    prepared = desk.laboratory.prepare()
    assert prepared.shards == () and prepared.runs == ()
    assert open_archive(desk.laboratory.archive).methods == [OPTIMIZED]
    assert run in open_archive(desk.laboratory.archive).runs


# --- refused ------------------------------------------------------------------------------------------


def test_an_archive_of_another_generator_is_refused(desk: Any, tmp_path: Path) -> None:
    desk.laboratory.fill(1)
    desk.laboratory.invert()
    torch.manual_seed(5)
    other = str(tmp_path / "other.safetensors")
    save_generator(Generator(load_generator(desk.laboratory.generator).config), other)
    with pytest.raises(ArchiveMismatchError, match=r"holds codes of generator .* name that generator"):
        desk.plan(desk.request({"slight": SLIGHT}, generator=GeneratorFile(other)))


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        ({"mix_with": "9.png", "layers": [0, 2]}, ArchiveKeyError, 'edit "it" of .* has no image 9'),
        (
            {"interpolate_to": {"0.png": "1.png"}, "weight": 0.5},
            ConfigError,
            'edit "it" names no image to go to from 1.png',
        ),
    ],
)
def test_an_edit_that_the_archive_cannot_have_is_refused_before_any_work(
    desk: Any, edit: dict[str, Any], error: type[Exception], message: str
) -> None:
    desk.laboratory.fill(2)
    desk.laboratory.invert()
    with pytest.raises(error, match=message):
        desk.plan(desk.request({"it": edit}))
    assert open_archive(desk.laboratory.archive).edits == []


def test_a_direction_of_another_width_is_refused(desk: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.ones((1, 512), np.float32))
    request = desk.request({"wide": {"direction": str(tmp_path / "wide.npy"), "strength": 1}})
    with pytest.raises(ConfigError, match=r'edit "wide": .*wide\.npy: .*512'):
        check_edits(request)  # before there is an archive
    desk.laboratory.fill(1)
    desk.laboratory.invert()
    with pytest.raises(ConfigError, match=r'edit "wide": .*wide\.npy: .*512'):
        desk.plan(request)


def test_what_measures_an_equal_effect_is_looked_for_before_there_is_an_archive(desk: Any, tmp_path: Path) -> None:
    equal = {"direction": "right", "equal_effect": {"attribute": "yaw", "change": 1.0}}
    with pytest.raises(MissingWeightsError, match=r"the face detector \(MTCNN\) needs pnet.npy, rnet.npy, onet.npy"):
        check_edits(desk.request({"turned": equal}, published=Published(str(tmp_path))))


def test_unknown_methods_and_empty_archives_are_refused(desk: Any, new_laboratory: Callable[[], Any]) -> None:
    desk.laboratory.fill(1)
    prepared = desk.laboratory.prepare()
    with pytest.raises(ArchiveKeyError, match="has no published inversion: run `lsap run invert` first"):
        desk.plan(desk.request({"slight": SLIGHT}))
    desk.laboratory.embed(prepared)
    desk.laboratory.publish(prepared)
    with pytest.raises(ArchiveKeyError, match="has no method e4e: it has stylegan2_w_plus"):
        desk.plan(desk.request({"slight": SLIGHT}, methods=("e4e",)))


def test_of_two_configurations_of_a_name_the_newer_is_edited(desk: Any) -> None:
    desk.laboratory.fill(2)
    desk.laboratory.invert()
    newer = desk.laboratory.invert(methods=(method(OPTIMIZED, num_steps=2),))
    archive, _ = desk.edit({"slight": SLIGHT})
    (edit,) = (run for run in archive.runs if run.subject is not None)
    assert edit.subject is not None and edit.subject.run_id == newer.runs[-1].run_id
    assert RunWriter.open(desk.laboratory.archive, edit.run_id).num_rows == 2
