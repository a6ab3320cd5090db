"""Measuring an archive shard by shard: what is planned, what is measured, and what becomes of missing originals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from domains.domain import load_domain
from lsap_archive import (
    Archive,
    ArchiveKeyError,
    ArchiveMismatchError,
    EvaluationWriter,
    give_up_unfinished,
    open_archive,
    repair_archive,
    verify_archive,
)
from lsap_core.errors import CheckpointError, ConfigError
from lsap_core.generators import Generator
from lsap_core.inversion.by_encoder import EncoderSettings
from lsap_core.metrics.disalignment import disalignment_of
from lsap_core.presets import method
from tasks.editing.spec import parse_edit
from tasks.evaluation.plan import EvaluationStage
from tasks.evaluation.request import Synthetic
from tasks.evaluation.table import evaluation_table, set_numbers, unknown_set_numbers
from tasks.measuring.frechet import FrechetState
from tasks.measuring.networks import EvaluationChoice
from tasks.weights.encoders import load_encoder
from tasks.weights.generators import GeneratorFile, load_generator, save_generator

OPTIMIZED = "stylegan2_w_plus"
COMPARED = {"mse", "psnr", "ms_ssim", "lpips", "identity", "class_kept", "attribute_of_original"}


@pytest.fixture
def encoder(laboratory: Any, new_encoder: Callable[..., str], tmp_path: Path) -> str:
    """The laboratory inverts with a random encoder named e4e."""
    laboratory.encoders = {"e4e": new_encoder(tmp_path / "e4e.safetensors", title="e4e")}
    laboratory.methods = (method("e4e"),)
    path: str = laboratory.encoders["e4e"]
    return path


def values_of(archive: Archive, measure: str, **where: Any) -> dict[str, float | None]:
    rows = [row for row in archive.measurements().to_pylist() if row["measure"] == measure]
    return {row["image_id"]: row["value"] for row in rows if all(row[name] == value for name, value in where.items())}


def test_measurements_agree_with_the_rows_of_the_inversion(desk: Any) -> None:
    """The same metric on the same images, by another road: codes and noise from the archive."""
    desk.laboratory.fill(6)
    desk.laboratory.invert()
    archive, prepared = desk.evaluate()
    assert [shard.num_images for shard in prepared.shards] == [4, 2]
    for row in archive.rows().to_pylist():
        for measure, column in (("mse", "mse"), ("lpips", "lpips_judge"), ("sncd", "sncd"), ("w_distance",) * 2):
            found = values_of(archive, measure)[row["image_id"]]
            assert found == pytest.approx(row[column], rel=1e-3, abs=1e-5)
    assert set(values_of(archive, "identity", by="digits-judge")) == {f"{number}.png" for number in range(6)}
    assert verify_archive(desk.laboratory.archive).is_sound


def test_a_second_plan_is_empty_and_new_images_alone_are_left(desk: Any) -> None:
    desk.laboratory.fill(2)
    desk.laboratory.invert()
    _, first = desk.evaluate()
    again = desk.plan(desk.request())
    assert again.shards == () and again.unpublished == () and again.evaluations == first.evaluations
    desk.laboratory.fill(3)
    desk.laboratory.invert()
    archive, second = desk.evaluate()
    assert [shard.num_images for shard in second.shards] == [1]
    assert set(second.evaluations[OPTIMIZED]) > set(first.evaluations[OPTIMIZED])
    assert len(values_of(archive, "mse")) == 3
    assert f"| {OPTIMIZED} | 3 |" in evaluation_table(archive, second.evaluations)


def test_what_is_wrong_with_an_original_becomes_the_problem_of_what_compares(desk: Any) -> None:
    laboratory = desk.laboratory
    laboratory.fill(4)
    laboratory.put("broken.png", b"this is no picture")
    laboratory.invert()
    laboratory.put("1.png", laboratory.picture(77))
    (laboratory.source / "2.png").unlink()
    archive, _ = desk.evaluate(attributes=("slant",))
    rows = archive.measurements().to_pylist()
    problems = {(row["image_id"], row["measure"]): row["problem"] for row in rows if row["value"] is None}
    for measure in COMPARED - {"ms_ssim"}:
        assert problems["1.png", measure] == "changed" and problems["2.png", measure] == "not_in_source"
    assert problems["0.png", "ms_ssim"] == "too_small"  # 32 pixels have not five scales
    assert {row["image_id"] for row in rows} == {"0.png", "1.png", "2.png", "3.png"}  # what was not inverted has no row
    assert values_of(archive, "sncd")["2.png"] is not None and values_of(archive, "mse")["3.png"] is not None
    (laboratory.source / "2.png").write_bytes(laboratory.picture(2))
    laboratory.put("1.png", laboratory.picture(1))
    archive, _ = desk.evaluate(attributes=("slant",))  # an image that came back is another question
    assert None not in values_of(archive, "mse").values()


def test_originals_that_moved_are_found(desk: Any, tmp_path: Path) -> None:
    desk.laboratory.fill(2)
    desk.laboratory.invert()
    wanted = values_of(desk.evaluate()[0], "mse")
    (desk.laboratory.source).rename(tmp_path / "elsewhere")
    archive, prepared = desk.evaluate(source=str(tmp_path / "elsewhere"), networks=EvaluationChoice())
    assert prepared.shards[0].places.keys() == {"0.png", "1.png"}
    assert values_of(archive, "mse") == wanted


def test_without_a_source_nothing_is_compared(desk: Any) -> None:
    desk.laboratory.fill(2)
    desk.laboratory.invert()
    archive, _ = desk.evaluate(source=None, attributes=("slant",))
    found = set(archive.measurements().column("measure").to_pylist())
    assert found == {"sncd", "w_distance", "attribute", "class_confidence"}


def test_an_evaluation_stopped_halfway_is_gone_on_with(desk: Any) -> None:
    desk.laboratory.fill(6)
    desk.laboratory.invert()
    request = desk.request()
    prepared = desk.plan(request)
    desk.worker(request)(prepared.shards[1])
    assert open_archive(desk.laboratory.archive).evaluations == []
    again = desk.plan(request)
    assert [shard.index for shard in again.shards] == [0] and again.evaluations == prepared.evaluations
    late = desk.worker(request)
    assert late(again.shards[0]).won and not late(again.shards[0]).won
    (evaluation_id,) = again.unpublished
    assert EvaluationWriter.open(desk.laboratory.archive, evaluation_id).publish({})
    assert len(values_of(open_archive(desk.laboratory.archive), "mse")) == 6


def test_sums_of_the_shards_give_the_distance_of_the_whole(desk: Any) -> None:
    desk.laboratory.fill(6)
    desk.laboratory.invert()
    whole, parts = (desk.request(frechet="digits-judge", attributes=attributes) for attributes in ((), ("slant",)))
    distances = []
    for request, batch_size in ((whole, 4), (parts, 1)):
        prepared = desk.plan(request)
        worker = desk.worker(replace(request, batch_size=batch_size))
        for shard in reversed(prepared.shards):
            worker(shard)
        (evaluation_id,) = prepared.unpublished
        states = EvaluationWriter.open(request.archive, evaluation_id).states()
        first, second = (FrechetState.from_bytes(data) for data in states)
        summary = second.merge(first).summary()
        assert (summary["num_images"], summary["num_originals"]) == (6, 6)
        distances.append(summary["value"])
    assert distances[0] == pytest.approx(distances[1], rel=1e-4)


def distance(archive: Archive, stage: EvaluationStage) -> tuple[float, int]:
    """The only Fréchet distance that readers find, wherever they look, and of how many images it is."""
    (row,) = archive.sql("select value, num_images, problem from set_numbers").to_pylist()
    summaries = [one.summary["fid"] for one in archive.evaluations if "fid" in one.summary]
    (told,) = set_numbers(archive, stage.evaluations).values()
    assert (
        row["problem"] is None
        and [(one["value"], one["num_images"]) for one in (*summaries, told)] == [(row["value"], row["num_images"])] * 2
    )
    heading, _, line = evaluation_table(archive, stage.evaluations).split("\n")
    assert heading.startswith("|  | images | FD [digits-judge] | ")
    assert f"| {row['num_images']} | {row['value']:.4g} | " in line
    assert unknown_set_numbers(archive, stage.evaluations) == []
    return row["value"], row["num_images"]


def test_a_distance_is_of_all_images_after_some_were_added_and_made_again(desk: Any) -> None:
    laboratory, asked = desk.laboratory, {"frechet": "digits-judge"}
    laboratory.fill(6)
    laboratory.invert()
    stage = desk.finish(**asked)
    whole = distance(open_archive(laboratory.archive), stage)
    assert whole[1] == 6
    run_id = open_archive(laboratory.archive).runs[0].run_id
    laboratory.store.put(f"runs/{run_id}/w_plus/c/0/0/0", b"damaged")
    repair_archive(laboratory.archive)
    archive = open_archive(laboratory.archive)
    assert [one.problem for one in archive.sets] == ["stale"] and set_numbers(archive, stage.evaluations) == {}
    assert "FD [" not in evaluation_table(archive, stage.evaluations)
    (sentence,) = unknown_set_numbers(archive, stage.evaluations)
    assert sentence == f"{OPTIMIZED}: the Fréchet distance by digits-judge is not known (stale)"
    alone = distance(open_archive(laboratory.archive), desk.finish(**asked))  # nobody has made the four again
    assert alone[1] == 2 and alone[0] != pytest.approx(whole[0], rel=0.01)
    laboratory.invert()
    again = distance(open_archive(laboratory.archive), desk.finish(**asked))
    assert again == (pytest.approx(whole[0], rel=1e-4), 6)
    laboratory.fill(9)
    laboratory.invert()
    more = distance(open_archive(laboratory.archive), stage := desk.finish(**asked))
    assert more[1] == 9 and stage.add_up_sets() == [] and verify_archive(laboratory.archive).is_sound
    laboratory.archive += "-at-once"
    laboratory.invert()
    at_once = distance(open_archive(laboratory.archive), desk.finish(**asked))
    assert more == (pytest.approx(at_once[0], rel=1e-4), 9)


def test_lec_is_measured_of_encoders_alone(desk: Any, encoder: str, tmp_path: Path) -> None:
    laboratory = desk.laboratory
    laboratory.fill(3)
    laboratory.invert(methods=(method("e4e"), method(OPTIMIZED, num_steps=2)))
    np.save(tmp_path / "right.npy", np.eye(1, 8, dtype=np.float32))
    lec = {
        name: parse_edit(name, {"direction": "right", "strength": far}, {"right": str(tmp_path / "right.npy")})
        for name, far in (("still", 0.0), ("far", 3.0))
    }
    archive, prepared = desk.evaluate(lec=lec)
    assert set(values_of(archive, "lec", by="far", method="e4e")) == {"0.png", "1.png", "2.png"}
    assert values_of(archive, "lec", by="far", method=OPTIMIZED) == {}
    in_s = parse_edit("channel", {"style_channel": [0, 0], "strength": 3}, {})
    with pytest.raises(ConfigError, match='"channel" is in S, and lec compares codes, which it does not change'):
        desk.plan(desk.request(lec={"channel": in_s}))
    generator = load_generator(laboratory.generator).generator.freeze()
    codes = torch.from_numpy(archive.codes(["1.png"], "e4e"))
    network = load_encoder(encoder).encoder.eval()
    with torch.no_grad():
        again = network.w_avg + network.offsets(generator.synthesize(codes))
    wanted = float(torch.linalg.vector_norm(codes - again))
    assert values_of(archive, "lec", by="still")["1.png"] == pytest.approx(wanted, rel=1e-3)
    (info,) = (one for one in archive.evaluations if one.method == "e4e")
    assert info.config["lec"]["far"]["strength"] == 3.0 and prepared.evaluations["e4e"] == (info.evaluation_id,)


def test_encoders_are_compared_on_synthetic_images(desk: Any, encoder: str) -> None:
    """The numbers of Table 2, of an archive that holds no image yet; whatever the shards are."""
    for seed, shard_rows in ((3, 4), (4, 16)):
        synthetic = Synthetic(6, 1.0, seed, "authors", {"e4e": EncoderSettings()}, shard_rows)
        archive, prepared = desk.evaluate(synthetic=synthetic, source=None, networks=EvaluationChoice())
        assert len(prepared.shards) == -(-6 // shard_rows)
        generator = load_generator(desk.laboratory.generator).generator.freeze()
        z = torch.randn(6, generator.config.z_dim, generator=torch.Generator().manual_seed(seed))
        network = load_encoder(encoder).encoder.eval()
        with torch.no_grad():
            w = generator.map(z)
            codes = network.w_avg + network.offsets(generator.synthesize(w))
        distance = disalignment_of(codes, w, generator)
        table = archive.measurements(["measure", "row", "value"], evaluations=prepared.evaluations["e4e"]).to_pylist()
        for measure, wanted in (("disalignment_w", distance.w.per_layer), ("disalignment_s_n", distance.s_n)):
            found = [row["value"] for row in table if row["measure"] == measure]
            np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-3)
    assert archive.measurements().column("run_id").null_count == archive.measurements().num_rows


def test_a_plan_of_other_shards_holds_nobody_unless_parts_of_it_are_done(desk: Any, encoder: str) -> None:
    def stage(shard_rows: int) -> EvaluationStage:
        synthetic = Synthetic(6, 1.0, 3, "authors", {"e4e": EncoderSettings()}, shard_rows)
        return EvaluationStage(desk.request(synthetic=synthetic, source=None, networks=EvaluationChoice()))

    (stuck,) = stage(10**15).jobs()
    begun = stage(4)
    (job,) = begun.jobs()
    assert job.job_id == f"{stuck.job_id}.2" and len(job.shards) == 2 and not job.note
    worker = begun.build_worker()
    worker(job.shards[1])
    other = stage(2)
    (again,) = other.jobs()
    assert (again.job_id, [shard.num_images for shard in again.shards]) == (job.job_id, [4])
    assert f"--give-up {job.job_id}" in again.note and list(other.notes) == [again.note]
    worker(again.shards[0])
    other.publish(again.job_id)
    give_up_unfinished(desk.laboratory.archive, [stuck.job_id])
    (info,) = open_archive(desk.laboratory.archive).evaluations
    assert info.evaluation_id == job.job_id and verify_archive(desk.laboratory.archive).is_sound
    assert list(stage(4).jobs()) == list(stage(16).jobs()) == []


def test_a_publication_that_was_killed_is_ended_by_the_next_command(desk: Any) -> None:
    desk.laboratory.fill(3)
    desk.laboratory.invert()
    _, prepared = desk.evaluate()
    (evaluation_id,) = prepared.unpublished
    desk.laboratory.store.delete_folder(f"evaluations/{evaluation_id}/_copy")
    assert desk.plan(desk.request()).jobs == ()
    assert verify_archive(desk.laboratory.archive).information == []


def test_synthetic_codes_are_truncated_to_the_mean_of_w(desk: Any) -> None:
    """With psi = 0 all images are that of the mean code."""
    digits = load_domain("digits")
    shared = {"generator": GeneratorFile(digits.generator), "encoders": digits.encoders, "source": None}
    spread = []
    for psi in (0.0, 1.0):
        synthetic = Synthetic(4, psi, 0, "authors", {"e4e": EncoderSettings()}, 4)
        archive, _ = desk.evaluate(synthetic=synthetic, networks=EvaluationChoice(), **shared)
        values = values_of(archive, "disalignment_w", evaluation_id=archive.evaluations[-1].evaluation_id)
        spread.append(np.ptp([value for value in values.values() if value is not None]))
    assert spread[0] < 1e-3 < 1 < spread[1]
    desk.laboratory.archive += "-of-the-random-one"
    with pytest.raises(ConfigError, match=r"psi is 0\.5 and .* has no mean of W to truncate to; wanted 1"):
        desk.plan(desk.request(synthetic=Synthetic(4, 0.5, 0, "authors", {"e4e": EncoderSettings()}, 4)))


# --- refused ------------------------------------------------------------------------------------------


def test_another_encoder_than_that_of_the_codes_is_refused(
    desk: Any, encoder: str, new_encoder: Callable[..., str], tmp_path: Path
) -> None:
    desk.laboratory.fill(1)
    desk.laboratory.invert()
    np.save(tmp_path / "right.npy", np.eye(1, 8, dtype=np.float32))
    lec = {"far": parse_edit("far", {"direction": str(tmp_path / "right.npy"), "strength": 3}, {})}
    other = new_encoder(tmp_path / "other.safetensors", seed=9)
    with pytest.raises(ConfigError, match=r"holds encoder .* the archive's codes are by .* encoders\.e4e="):
        desk.plan(desk.request(lec=lec, encoders={"e4e": other}))
    with pytest.raises(ConfigError, match=r"encoder e4e of the archive has no file; name it: encoders\.e4e="):
        desk.plan(desk.request(lec=lec, encoders={}))
    request = desk.request(lec=lec)
    prepared = desk.plan(request)
    with pytest.raises(CheckpointError, match="was planned: put the file back"):
        desk.worker(replace(request, encoders={"e4e": other}))(prepared.shards[0])


def test_an_archive_of_another_generator_is_refused(desk: Any, tmp_path: Path) -> None:
    desk.laboratory.fill(1)
    desk.laboratory.invert()
    torch.manual_seed(5)
    other = str(tmp_path / "other.safetensors")
    save_generator(Generator(load_generator(desk.laboratory.generator).config), other)
    with pytest.raises(ArchiveMismatchError, match=r"holds codes of generator .* name that generator"):
        desk.plan(desk.request(generator=GeneratorFile(other)))


def test_what_cannot_be_measured_is_refused_before_any_work(desk: Any, tmp_path: Path) -> None:
    desk.laboratory.fill(1)
    desk.laboratory.invert()
    np.save(tmp_path / "right.npy", np.eye(1, 8, dtype=np.float32))
    lec = {"far": parse_edit("far", {"direction": str(tmp_path / "right.npy"), "strength": 3}, {})}
    with pytest.raises(ConfigError, match=f"lec: none of {OPTIMIZED} was inverted by an encoder"):
        desk.plan(desk.request(lec=lec))
    with pytest.raises(ConfigError, match='attribute "age" is not known'):
        desk.plan(desk.request(attributes=("age",)))
    with pytest.raises(ConfigError, match="reference: a judge has to look at the real images"):
        desk.plan(desk.request(reference=str(desk.laboratory.source), networks=EvaluationChoice()))
    assert open_archive(desk.laboratory.archive).evaluations == []
    assert not any(key.startswith("evaluations") for key in desk.laboratory.contents())
    with pytest.raises(ArchiveKeyError, match=f"has no version 4a4a of method {OPTIMIZED}: it has "):
        desk.plan(desk.request(versions={OPTIMIZED: "4a4a"}))
