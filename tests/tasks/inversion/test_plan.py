"""Before the first shard: the same plan dry and in earnest, and every refusal before anything is written."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lsap_archive import ArchiveMismatchError, ArchiveWriter, Geometry, RunWriter
from lsap_core.errors import CheckpointError, ConfigError, MissingWeightsError
from lsap_core.generators.checkpoints import to_nvlabs
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator
from lsap_core.presets import METHODS as METHODS_BY_NAME
from lsap_core.presets import method, method_of_encoder
from tasks.archived.anchors import AnchorOptions, open_anchor
from tasks.errors import SourceError
from tasks.inversion.plan import InversionStage, check
from tasks.inversion.request import InversionRequest
from tasks.weights.encoders import load_encoder
from tasks.weights.generators import GeneratorFile, load_generator, save_generator
from tasks.weights.networks import NetworkChoice
from tasks.weights.published import Published

METHODS = (method("stylegan2_w", num_steps=2), method("lsap_o_w", num_steps=2, sncd_weight=0.5))


def test_a_new_archive_gets_its_anchor_and_a_run_for_every_method(laboratory: Any) -> None:
    laboratory.fill(5)
    prepared = laboratory.prepare(methods=METHODS, shard_rows=2)
    assert (prepared.num_images, len(prepared.runs)) == (5, 2)
    assert [(shard.name, shard.index, shard.num_images) for shard in prepared.shards] == [
        (each.name, shard, size) for each in METHODS for shard, size in enumerate((2, 2, 1))
    ]
    assert prepared.source.endswith("5 images")
    assert open_anchor(laboratory.archive, prepared.facts.anchor).num_samples == 64
    runs = [RunWriter.open(laboratory.archive, run_id) for run_id in prepared.runs]
    assert [run.plan["method"] for run in runs] == [each.name for each in METHODS]
    assert {run.plan["config"]["anchor"] for run in runs} == {prepared.facts.anchor}
    assert {run.plan["config"]["generator"] for run in runs} == {load_generator(laboratory.generator).digest}


def test_what_a_file_of_weights_cannot_say_is_told(laboratory: Any, tmp_path: Path) -> None:
    laboratory.fill(1)
    loaded = load_generator(laboratory.generator)
    state = to_nvlabs(loaded.config, {name: one.detach() for name, one in loaded.generator.state_dict().items()})
    torch.save({"G_ema": state, "cfg": tmp_path}, tmp_path / "bare.pt")
    facts = laboratory.prepare(generator=GeneratorFile(str(tmp_path / "bare.pt"))).facts
    assert any(note.startswith("generator: assumed, as the file cannot say it: no conv_clamp") for note in facts.notes)


def test_a_generator_of_images_that_no_picture_has_is_refused_in_a_sentence(laboratory: Any, tmp_path: Path) -> None:
    laboratory.fill(1)
    config = replace(load_generator(laboratory.generator).config, image_channels=2)
    save_generator(Generator(config), str(tmp_path / "two.safetensors"))
    with pytest.raises(CheckpointError, match=r"two\.safetensors makes images of 2 channels, and pictures have 1"):
        laboratory.prepare(generator=GeneratorFile(str(tmp_path / "two.safetensors")))


def test_an_anchor_that_is_kept_is_not_estimated_again(laboratory: Any) -> None:
    laboratory.fill(1)
    digest = laboratory.prepare().facts.anchor
    (key,) = [key for key in laboratory.contents() if key.startswith("anchors/")]
    laboratory.store.put(key, b"this one is kept")
    assert laboratory.prepare().facts.anchor == digest
    assert laboratory.store.get(key) == b"this one is kept"
    other = laboratory.prepare(anchor=AnchorOptions(num_samples=64, seed=1)).facts.anchor
    assert other != digest
    assert laboratory.store.exists(f"anchors/{other}.npz")


def test_preparing_twice_changes_nothing(laboratory: Any) -> None:
    laboratory.fill(3)
    first = laboratory.prepare()
    before = laboratory.contents()
    again = laboratory.prepare()
    assert (again.runs, again.shards) == (first.runs, first.shards)
    assert laboratory.contents() == before


def test_a_finished_archive_has_nothing_left_whatever_the_shards_are(laboratory: Any) -> None:
    laboratory.fill(3)
    laboratory.invert(shard_rows=2)
    prepared = laboratory.prepare(shard_rows=1)
    assert (prepared.runs, prepared.shards, prepared.num_images) == ((), (), 3)


# --- without writing ----------------------------------------------------------------------------------


def test_a_dry_plan_of_a_new_archive_writes_nothing(laboratory: Any) -> None:
    laboratory.fill(5)
    dry = laboratory.prepare(start=False, methods=METHODS, shard_rows=2)
    assert laboratory.contents() == {}
    assert laboratory.prepare(methods=METHODS, shard_rows=2) == dry
    assert all(job.is_new for job in dry.jobs)
    assert {job.name: job.num_images for job in dry.jobs} == {each.name: 5 for each in METHODS}
    assert dry.facts.config == load_generator(laboratory.generator).config


def test_a_dry_plan_of_an_archive_in_use_writes_nothing(laboratory: Any) -> None:
    laboratory.fill(2)
    laboratory.invert()
    laboratory.put("a.png", laboratory.picture(10))
    (unfinished,) = laboratory.prepare().runs
    laboratory.put("b.png", laboratory.picture(11))
    before = {key: laboratory.store.get(key) for key in laboratory.contents()}
    dry = laboratory.prepare(start=False)
    assert {key: laboratory.store.get(key) for key in laboratory.contents()} == before
    assert [(job.job_id == unfinished, job.is_new) for job in dry.jobs] == [(True, False), (False, True)]
    prepared = laboratory.prepare()
    assert prepared == dry
    assert [shard.num_images for shard in prepared.shards] == [1, 1]


# --- encoders -----------------------------------------------------------------------------------------


def test_files_give_methods_their_digests_and_own_methods_their_titles(
    laboratory: Any, tmp_path: Path, new_encoder: Callable[..., str]
) -> None:
    laboratory.fill(1)
    laboratory.encoders = {
        "e4e": new_encoder(tmp_path / "a.safetensors", title="another title"),
        "seed_1": new_encoder(tmp_path / "b.safetensors", seed=1, title="LSAP_E"),
        "seed_2": new_encoder(tmp_path / "c.safetensors", seed=2),
        "unused": str(tmp_path / "not there"),
    }
    methods = (METHODS_BY_NAME["e4e"], method_of_encoder("seed_1"), method_of_encoder("seed_2"))
    prepared = laboratory.prepare(methods=methods)
    assert [each.title for each in prepared.facts.methods] == ["e4e", "LSAP_E (seed_1)", "seed_2"]
    used = {name: load_encoder(laboratory.encoders[name]).digest for name in ("e4e", "seed_1", "seed_2")}
    assert prepared.facts.encoders == used
    runs = [RunWriter.open(laboratory.archive, run_id) for run_id in prepared.runs]
    assert {run.plan["method"]: run.plan["config"]["encoder"]["digest"] for run in runs} == used
    assert [run.plan["config"]["title"] for run in runs] == [each.title for each in prepared.facts.methods]


def test_another_file_under_the_same_name_is_embedded_anew(
    laboratory: Any, tmp_path: Path, new_encoder: Callable[..., str]
) -> None:
    laboratory.fill(1)
    methods = (METHODS_BY_NAME["e4e"],)
    laboratory.encoders = {"e4e": new_encoder(tmp_path / "a.safetensors")}
    laboratory.invert(methods=methods)
    laboratory.encoders = {"e4e": new_encoder(tmp_path / "copy.safetensors")}
    assert laboratory.prepare(methods=methods).shards == ()
    laboratory.encoders = {"e4e": new_encoder(tmp_path / "b.safetensors", seed=1)}
    assert len(laboratory.prepare(methods=methods).shards) == 1


@pytest.mark.parametrize(
    ("told", "name", "error", "message"),
    [
        ({"generator_digest": "0" * 64}, "e4e", CheckpointError, r"e\.safetensors holds an encoder of generator 000"),
        ({}, "restyle_e4e", ConfigError, "method restyle_e4e: num_passes is 5, and this encoder reads the image"),
        (None, "e4e", CheckpointError, r"e\.safetensors does not exist; wanted a released \.pt"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(
    laboratory: Any,
    tmp_path: Path,
    new_encoder: Callable[..., str],
    told: dict[str, Any] | None,
    name: str,
    error: type[Exception],
    message: str,
) -> None:
    laboratory.fill(1)
    path = tmp_path / "e.safetensors"
    if told is not None:
        new_encoder(path, **told)
    request = laboratory.request(methods=(METHODS_BY_NAME[name],), encoders={name: str(path)})
    refused(request, error, message)
    assert laboratory.contents() == {}


def test_the_content_box_of_a_domain_is_part_of_the_generator(laboratory: Any, tmp_path: Path) -> None:
    """An encoder, an archive and an anchor of one box are not those of another."""
    laboratory.generator = str(tmp_path / "large.safetensors")
    config = GeneratorConfig(64, (2,) * 5, z_dim=2, w_dim=2, num_mapping_layers=1, image_channels=1)
    save_generator(Generator(config), laboratory.generator)
    laboratory.fill(1)
    laboratory.prepare(content_box=(0, 32, 0, 32))
    refused(laboratory.request(content_box=(1, 33, 0, 32)), ArchiveMismatchError, "this run has")
    refused(laboratory.request(content_box=(0, 65, 0, 32)), ConfigError, "lies outside 64 pixels")
    refused(laboratory.request(content_box=(0, 24, 0, 32)), ConfigError, "makes 1-channel images of 32x24 px")


# --- refusals -----------------------------------------------------------------------------------------


def refused(request: InversionRequest, error: type[Exception], message: str) -> None:
    """All who look before the work refuse with the same words."""
    for look in (InversionStage, functools.partial(InversionStage, start=False), check):
        with pytest.raises(error, match=message):
            look(request)


def test_an_empty_source_is_refused(laboratory: Any) -> None:
    laboratory.put("notes.txt", b"no image")
    refused(laboratory.request(), SourceError, r"no image found.*1 \.txt")
    assert laboratory.contents() == {}


def test_a_source_that_is_not_there_is_refused(laboratory: Any) -> None:
    refused(laboratory.request(source=str(laboratory.source / "nowhere")), SourceError, "nothing is at .*nowhere")
    assert laboratory.contents() == {}


@pytest.mark.parametrize(
    ("name", "data", "message"), [("gone.pt", None, "does not exist"), ("page.pt", b"<!doctype html>", "a web page")]
)
def test_a_wrong_generator_file_is_refused(
    laboratory: Any, tmp_path: Path, name: str, data: bytes | None, message: str
) -> None:
    laboratory.fill(1)
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    refused(laboratory.request(generator=GeneratorFile(str(path))), CheckpointError, f"{name}.*{message}")
    assert laboratory.contents() == {}


def test_the_archive_of_another_generator_is_refused(laboratory: Any, tmp_path: Path) -> None:
    laboratory.fill(1)
    config = load_generator(laboratory.generator).config
    other = str(tmp_path / "other.safetensors")
    digest = save_generator(Generator(config), other)
    laboratory.prepare()
    before = laboratory.contents()
    refused(laboratory.request(generator=GeneratorFile(other)), ArchiveMismatchError, f"this run has {digest}")
    assert laboratory.contents() == before


def test_the_archive_of_another_geometry_is_refused(laboratory: Any) -> None:
    laboratory.fill(1)
    digest = load_generator(laboratory.generator).digest
    geometry = Geometry(2, 8, (4, 8))
    ArchiveWriter.open(laboratory.archive, generator_digest=digest, generator_name="g", geometry=geometry)
    refused(laboratory.request(), ArchiveMismatchError, "holds codes of Geometry.num_ws=2,")


def test_a_network_of_another_size_is_refused(laboratory: Any, tmp_path: Path) -> None:
    laboratory.fill(1)
    path = str(tmp_path / "small.safetensors")
    save_generator(Generator(GeneratorConfig(16, (2, 2, 2), z_dim=2, w_dim=2, num_mapping_layers=1)), path)
    refused(
        laboratory.request(generator=GeneratorFile(path)),
        ConfigError,
        r"digits-\w+ looks at 1-channel images of 32 px; the generator makes 3-channel images of 16 px",
    )
    assert laboratory.contents() == {}


def test_a_missing_trunk_is_refused(laboratory: Any, tmp_path: Path) -> None:
    laboratory.fill(1)
    networks = NetworkChoice("lpips-vgg", "digits-features", published=Published(tmp_path))
    refused(laboratory.request(networks=networks), MissingWeightsError, "lpips-vgg needs")
    assert laboratory.contents() == {}
