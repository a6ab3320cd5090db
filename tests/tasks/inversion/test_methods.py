"""What is planned, what is left alone, and what decides the identity of a method and of a run."""

from __future__ import annotations

import uuid
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lsap_archive import ArchiveWriter, Geometry, RunWriter
from lsap_core.errors import ConfigError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.inversion import KeepNoise
from lsap_core.inversion.by_encoder import EncoderSettings
from lsap_core.inversion.by_optimization import OptimizationSettings
from lsap_core.presets import METHODS, Method, encoder_settings, method, settings_of
from tasks.archived.rendering import has_noise_maps, kept_noise_of
from tasks.errors import BadImageError
from tasks.inversion.methods import MethodPlan, missing_shards, plan_method, run_plan
from tasks.sources.source import PlannedImage
from tasks.weights.networks import LPIPS_TRUNKS, NetworkChoice
from tasks.weights.published import Published

CONFIG = GeneratorConfig(8, (3, 2), z_dim=3, w_dim=5, num_mapping_layers=1)
NETWORKS = NetworkChoice("digits-features", "digits-features")
METHOD = method("stylegan2_w_plus", num_steps=3)
GEOMETRY = Geometry(CONFIG.num_ws, CONFIG.w_dim, CONFIG.noise_sizes)
FROM_ENCODER = METHODS["lsap_o_w_plus_from_lsap_e"]

# Another value for every setting, so that a new one cannot be forgotten.
CHANGED = {
    "space": "w",
    "num_steps": 4,
    "learning_rate": 0.2,
    "lpips_weight": 2.0,
    "sncd_weight": 1.0,
    "sncd_on": "explored",
    "mse_weight": 1.0,
    "mean_code_weight": 1.0,
    "noise_weight": 1.0,
    "exploration": 0.0,
    "noise_normalization": "biased",
    "downsampling": "bilinear",
    "record_every": 2,
    "start": "encoder",
    "precision": "bfloat16",
    "first_decay": 0.8,
    "second_decay": 0.99,
    "stop_at_lpips": 0.1,
}


def planned(**changes: Any) -> MethodPlan:
    values: dict[str, Any] = {
        "generator_digest": "generator-1",
        "anchor": "anchor-1",
        "networks": NETWORKS,
        "fit": "refuse",
        "seed": 0,
        "geometry": GEOMETRY,
    }
    return plan_method(changes.pop("method", METHOD), **{**values, **changes})


def image(name: str, content: str | None = None) -> PlannedImage:
    return PlannedImage(name, f"file:///{name}", content or f"content of {name}")


def unreadable(name: str) -> PlannedImage:
    return PlannedImage(name, f"file:///{name}", "unreadable:truncated", BadImageError("truncated", "too short"))


@pytest.fixture
def archive() -> ArchiveWriter:
    return ArchiveWriter.open(
        f"memory://test-{uuid.uuid4().hex}",
        generator_digest="generator-1",
        generator_name="tiny",
        geometry=GEOMETRY,
    )


def write(run: RunWriter, shard: int) -> None:
    size = len(run.rows_of(shard))
    codes = np.zeros((size, CONFIG.num_ws, CONFIG.w_dim), np.float32)
    noise = {f"noise_{i:02d}": np.zeros((size, *sides), np.float32) for i, sides in enumerate(CONFIG.noise_sizes)}
    assert run.write_shard(shard, {"w_plus": codes, **noise}, pa.table({"status": ["ok"] * size}), "1")


def finish(*runs: RunWriter) -> None:
    for run in runs:
        for shard in run.missing_shards():
            write(run, shard)
        assert run.publish({})


# --- what decides a result --------------------------------------------------------------------------


def test_the_same_request_has_the_same_digest() -> None:
    assert planned().digest == planned().digest


@pytest.mark.parametrize("setting", [setting.name for setting in fields(OptimizationSettings)])
def test_every_setting_changes_the_digest(setting: str) -> None:
    assert CHANGED[setting] != getattr(METHOD.settings, setting)
    encoder = "e4e" if setting == "start" else None
    changed = replace(METHOD, settings=replace(METHOD.settings, **{setting: CHANGED[setting]}), encoder=encoder)
    assert planned(method=changed).digest != planned().digest


@pytest.mark.parametrize(
    "changes",
    [
        {"generator_digest": "generator-2"},
        {"anchor": "anchor-2"},
        {"fit": "crop"},
        {"seed": 1},
        {"method": method("l2_w_plus", num_steps=3, mean_code_weight=0.0)},
        {"networks": replace(NETWORKS, perceptual="digits-judge")},
        {"networks": replace(NETWORKS, metric_perceptual="digits-judge")},
        {"networks": replace(NETWORKS, identity="digits-features")},
        {"networks": replace(NETWORKS, judge="digits-judge")},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_everything_else_that_decides_changes_the_digest(changes: dict[str, Any]) -> None:
    assert planned(**changes).digest != planned().digest


def test_the_weights_of_a_network_change_the_digest_and_not_the_folder_they_lie_in(tmp_path: Path) -> None:
    digests = []
    for folder, weights in (("one", b"1"), ("two", b"1"), ("three", b"2")):
        path = tmp_path / folder / LPIPS_TRUNKS["lpips-vgg"]
        path.parent.mkdir()
        path.write_bytes(weights)
        networks = NetworkChoice("lpips-vgg", "digits-features", published=Published(path.parent, takes_others=True))
        digests.append(planned(networks=networks).digest)
    assert digests[0] == digests[1] != digests[2]


def test_the_method_of_an_archive_from_before_there_were_encoders_is_still_the_same() -> None:
    """Or all its images would be embedded again."""
    later = {"precision", "first_decay", "second_decay", "stop_at_lpips"}
    config = planned().config
    assert not {"start", *later} & set(config["settings"]) and not {"encoder", "noise"} & set(config)
    assert settings_of(config) == METHOD.settings
    started = planned(method=FROM_ENCODER, encoder="encoder-1").config
    recorded = {name: value for name, value in asdict(FROM_ENCODER.settings).items() if name not in later}
    assert started["settings"] == recorded and settings_of(started) == FROM_ENCODER.settings


@pytest.mark.parametrize("chosen", [METHODS["e4e"], FROM_ENCODER], ids=lambda chosen: chosen.name)
def test_another_encoder_is_another_method(chosen: Method) -> None:
    one, other = (planned(method=chosen, encoder=digest) for digest in ("encoder-1", "encoder-2"))
    assert one.digest != other.digest
    assert one.config["encoder"] == {"name": chosen.encoder, "digest": "encoder-1"}
    assert settings_of(one.config) == chosen.settings
    assert has_noise_maps(one.config) == isinstance(chosen.settings, OptimizationSettings)


def test_passes_through_an_encoder_change_the_digest() -> None:
    digests = {
        planned(method=method("restyle_e4e", num_passes=count), encoder="encoder-1").digest for count in (1, 2, 5)
    }
    assert len(digests) == 3


def test_a_method_without_steps_has_no_trace() -> None:
    plan = run_plan(planned(method=METHODS["e4e"], encoder="encoder-1"), [image("a")], 4)
    assert [array.name for array in plan.arrays] == ["w_plus"]


def test_an_optimization_asks_its_encoder_as_published_for_the_name() -> None:
    assert encoder_settings(EncoderSettings(num_passes=3), "restyle_e4e").num_passes == 3
    assert encoder_settings(FROM_ENCODER.settings, "lsap_e").num_passes == 1
    assert encoder_settings(FROM_ENCODER.settings, "restyle_e4e").num_passes == 5
    assert encoder_settings(FROM_ENCODER.settings, "own").num_passes == 1


def test_the_same_images_and_method_give_the_same_run() -> None:
    images = [image("a"), image("b")]
    first = run_plan(planned(), images, 4)
    assert run_plan(planned(), images, 4) == first
    assert first.run_id.startswith("stylegan2_w_plus-")
    others = [
        run_plan(planned(seed=1), images, 4),
        run_plan(planned(), images[:1], 4),
        run_plan(planned(), [image("a"), image("c", "content of b")], 4),
        run_plan(planned(), [image("a"), image("b", "other")], 4),
        run_plan(planned(), images, 2),
        run_plan(planned(), [image("a"), replace(image("b"), uri="file:///elsewhere")], 4),
        run_plan(planned(), [image("a"), replace(image("b"), version="2")], 4),
    ]
    assert len({first.run_id, *(plan.run_id for plan in others)}) == 8


def test_the_plan_of_two_moments_is_the_same_document() -> None:
    assert run_plan(planned(), [image("a")], 4).document() == run_plan(planned(), [image("a")], 4).document()


# --- shards -----------------------------------------------------------------------------------------


def test_missing_shards_are_exactly_the_uncommitted_ones(archive: ArchiveWriter) -> None:
    run = archive.start_run(run_plan(planned(), [image(name) for name in "abcdefg"], 2))
    write(run, 2)
    write(run, 0)
    left = missing_shards(run, {})
    assert [(shard.index, shard.num_images) for shard in left] == [(1, 2), (3, 1)]
    assert {(shard.job_id, shard.name) for shard in left} == {(run.run_id, "stylegan2_w_plus")}
    write(run, 1)
    write(run, 3)
    assert missing_shards(run, {}) == []


def test_equal_content_is_embedded_once_and_under_the_first_name(archive: ArchiveWriter) -> None:
    images = [image("a", "same"), image("b", "other"), image("c", "same"), image("d", "same"), image("e", "other")]
    run = archive.start_run(run_plan(planned(), images, 2))
    assert [shard.duplicates for shard in missing_shards(run, {})] == [{}, {"c": "a", "d": "a"}, {"e": "b"}]
    write(run, 0)  # who comes first does not depend on what is left to do
    assert [shard.duplicates for shard in missing_shards(run, {})] == [{"c": "a", "d": "a"}, {"e": "b"}]


def test_what_cannot_be_read_is_a_duplicate_of_nothing(archive: ArchiveWriter) -> None:
    run = archive.start_run(run_plan(planned(), [unreadable("a"), unreadable("b"), image("c")], 4))
    assert [shard.duplicates for shard in missing_shards(run, {})] == [{}]


@pytest.mark.parametrize(("keep", "noise"), [("float16", "float16"), ("none", "constant")])
def test_noise_that_is_kept_otherwise_is_another_method(keep: KeepNoise, noise: str) -> None:
    """Of a method that gives noise maps; nothing changes for an encoder."""
    other = planned(method=replace(METHOD, keep_noise=keep))
    assert other.digest != planned().digest
    assert other.config == {**planned().config, "noise": noise}
    assert kept_noise_of(other.config) == keep and kept_noise_of(planned().config) == "float32"
    kept = {array.dtype for array in other.arrays if array.name.startswith("noise_")}
    assert kept == ({"float16"} if keep == "float16" else set())
    one, same = (replace(METHODS["e4e"], keep_noise=how) for how in ("float32", keep))
    assert planned(method=one, encoder="encoder-1") == replace(planned(method=same, encoder="encoder-1"), method=one)


def test_noise_cannot_be_kept_in_other_ways() -> None:
    with pytest.raises(ConfigError, match='keep_noise is "float64"; wanted one of float32, float16, none'):
        METHOD.with_settings({"keep_noise": "float64"})
    with pytest.raises(ConfigError, match='a run has noise "wavelets"; this package knows float32, float16, constant'):
        kept_noise_of({"noise": "wavelets"})
