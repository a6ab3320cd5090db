"""Files of encoders: ours and released ones, and whether they belong to the generator of a run."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from torch import Tensor

from lsap_core.encoders import Encoder, EncoderConfig
from lsap_core.encoders.checkpoints import encoder_shapes
from lsap_core.errors import CheckpointError
from lsap_core.generators.checkpoints import CanonicalCheckpoint, to_rosinality_document
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator
from tasks.weights.encoders import (
    LoadedEncoder,
    check_generator,
    describe_encoder,
    encode_encoder,
    encoder_facts,
    load_encoder,
)
from tasks.weights.generators import LoadedGenerator, load_generator, save_generator

NewEncoder = Callable[..., str]


def small_encoder(config: GeneratorConfig, **sizes: Any) -> Encoder:
    torch.manual_seed(3)
    return Encoder(EncoderConfig.for_generator(config, **{"heads": "direct", "backbone": "small", **sizes}))


# --- our own files ------------------------------------------------------------------------------------


def test_an_encoder_comes_back_as_it_was_saved(tmp_path: Path, generator_file: str) -> None:
    generator = load_generator(generator_file)
    encoder = small_encoder(generator.config)
    told = {"generator_digest": generator.digest, "title": "mine", "options": {"num_steps": 5, "seed": 0}}
    path = str(tmp_path / "e.safetensors")
    Path(path).write_bytes(encode_encoder(encoder, **told))
    loaded = load_encoder(path, generator_config=generator.config)
    assert (loaded.layout, loaded.config, loaded.generator) == ("safetensors", encoder.config, None)
    assert {"generator_digest": loaded.generator_digest, "title": loaded.title, "options": loaded.options} == told
    assert not loaded.encoder.training
    images = torch.randn(2, 1, 32, 32)
    assert torch.equal(loaded.encoder(images), encoder.eval()(images))
    (tmp_path / "again.safetensors").write_bytes(encode_encoder(loaded.encoder, **told))
    assert load_encoder(str(tmp_path / "again.safetensors")).digest == loaded.digest
    check_generator(loaded, generator, path)


def test_urls_are_files_too(generator_file: str) -> None:
    encoder = small_encoder(load_generator(generator_file).config)
    try:
        fsspec.filesystem("memory").pipe("/encoders/e.safetensors", encode_encoder(encoder, generator_digest=None))
        loaded = load_encoder("memory://encoders/e.safetensors")
        assert (loaded.config, loaded.title) == (encoder.config, None)
    finally:
        fsspec.filesystem("memory").rm("/encoders", recursive=True)


def test_a_description_is_plain_values(tmp_path: Path, new_encoder: NewEncoder, generator_file: str) -> None:
    path = new_encoder(tmp_path / "e.safetensors", title="LSAP_E")
    described = describe_encoder(path)
    encoder = load_encoder(path).encoder
    assert described["num_parameters"] == sum(parameter.numel() for parameter in encoder.parameters())
    assert {name: described[name] for name in ("layout", "title", "heads", "num_ws", "input_size")} == {
        "layout": "safetensors",
        "title": "LSAP_E",
        "heads": "offsets",
        "num_ws": 8,
        "input_size": (32, 32),
    }
    assert described["generator_digest"] == load_generator(generator_file).digest
    assert (described["starts_from_mean"], described["generator_in_file"], described["notes"]) == (True, None, [])


def test_an_encoder_that_is_not_finite_is_not_written(generator_file: str) -> None:
    encoder = small_encoder(load_generator(generator_file).config)
    with torch.no_grad():
        encoder.w_avg[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="w_avg holds values that are not finite"):
        encode_encoder(encoder, generator_digest=None)


def test_what_is_no_encoder_is_refused_by_what_it_is(
    tmp_path: Path, generator_file: str, new_encoder: NewEncoder
) -> None:
    def refused(path: str | Path) -> str:
        for look in (load_encoder, describe_encoder):
            with pytest.raises(CheckpointError) as caught:
                look(str(path))
        return str(caught.value)

    assert "wanted a released .pt" in refused(tmp_path / "none.pt")
    assert "is a folder" in refused(tmp_path)
    assert "the metadata name Generator; wanted an encoder" in refused(generator_file)
    page = tmp_path / "page.pt"
    page.write_bytes(b"<!DOCTYPE html><title>Quota exceeded</title>")
    assert str(page) in refused(page) and "a download page was saved" in refused(page)
    module = tmp_path / "module.pt"
    torch.save({"encoder": torch.nn.Linear(1, 1)}, module)
    assert "holds no encoder.*; found bias, weight" in refused(module)
    save_generator(load_generator(generator_file).generator, str(tmp_path / "generator.pt"))
    assert "pass it as the generator" in refused(tmp_path / "generator.pt")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(Path(new_encoder(tmp_path / "whole.safetensors")).read_bytes()[:-100])
    assert "truncated" in refused(cut)


# --- released files, and whose they are ---------------------------------------------------------------

RELEASED = GeneratorConfig(256, (2,) * 7, z_dim=3, w_dim=5, num_mapping_layers=2)  # released encoders read 256 px


def released_generator(seed: int = 0) -> Generator:
    torch.manual_seed(seed)
    return Generator(RELEASED)


def released(folder: Path, generator: Generator) -> Path:
    """The file of a W encoder as the published programs save it: all weights 0, beside its generator."""
    config = EncoderConfig("single", "ir_se_50", RELEASED.num_ws, RELEASED.w_dim, (256, 256), RELEASED.image_channels)
    state: dict[str, Tensor] = {}
    for name, shape in encoder_shapes(config).items():
        published = name.removeprefix("backbone.").replace("heads.0.", "")
        if name != "w_avg":
            state[f"encoder.{published}"] = torch.zeros(shape)
    document = to_rosinality_document(CanonicalCheckpoint(generator.config, dict(generator.state_dict())))
    state |= {f"decoder.{name}": tensor for name, tensor in document["g_ema"].items()}
    path = folder / "released.pt"
    options = {"encoder_type": "BackboneEncoderUsingLastLayerIntoW", "output_size": 256, "start_from_latent_avg": True}
    torch.save({"state_dict": state, "latent_avg": torch.ones(1, RELEASED.w_dim), "opts": options}, path)
    return path


@pytest.fixture(scope="module")
def released_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released(tmp_path_factory.mktemp("released"), released_generator())


@pytest.fixture(scope="module")
def released_encoder(released_file: Path) -> LoadedEncoder:
    return load_encoder(str(released_file), generator_config=RELEASED)


def as_loaded(generator: Generator, folder: Path) -> LoadedGenerator:
    buffer = io.BytesIO()
    torch.save(to_rosinality_document(CanonicalCheckpoint(generator.config, dict(generator.state_dict()))), buffer)
    path = folder / "generator.pt"
    path.write_bytes(buffer.getvalue())
    return load_generator(str(path), content_box=generator.config.content_box)


def test_a_released_file_brings_encoder_generator_and_options(released_encoder: LoadedEncoder, tmp_path: Path) -> None:
    assert (released_encoder.layout, released_encoder.title) == ("w_encoder", None)
    assert released_encoder.options["output_size"] == 256
    codes = released_encoder.encoder(torch.zeros(1, 3, 256, 256))
    assert torch.equal(codes, torch.ones(1, RELEASED.num_ws, RELEASED.w_dim))  # weights 0: the mean, in every row
    assert released_encoder.generator is not None
    assert released_encoder.generator.config == RELEASED
    check_generator(released_encoder, as_loaded(released_generator(), tmp_path), "released.pt")


def test_of_a_file_that_does_not_say_its_heads_the_sizes_are_shown_and_a_run_says_them(
    tmp_path: Path,
) -> None:
    config = EncoderConfig("direct", "ir_se_50", 2, RELEASED.w_dim, (256, 256), 3)
    published = {"backbone.": "", "heads.": "styles.", "pyramid.lateral": "latlayer", "w_avg": "latent_avg"}
    state: dict[str, Tensor] = {}
    for name, shape in encoder_shapes(config).items():
        for ours, theirs in published.items():
            name = name.replace(ours, theirs)
        state[f"encoder.{name}"] = torch.zeros(shape)
    mean = state.pop("encoder.latent_avg")[0].numpy()
    path = str(tmp_path / "cut_down.pt")
    torch.save({"state_dict": state, "latent_avg": mean, "best_val_loss": np.float64(1)}, path)
    described = describe_encoder(path)
    assert (described["heads"], described["num_ws"], described["digest"]) == ("not said", 2, None)
    with pytest.raises(CheckpointError, match=r"cut_down\.pt: .*set heads\.mine in the run"):
        load_encoder(path, name="mine")
    assert load_encoder(path, name="mine", heads="offsets").config == replace(config, heads="offsets")
    loaded = load_encoder(path, name="psp")
    assert loaded.config == config and "direct, as psp has, was assumed" in loaded.notes[0]


def test_one_network_with_other_noise_or_another_mean_is_the_same_generator(
    released_encoder: LoadedEncoder, tmp_path: Path
) -> None:
    generator = released_generator()
    with torch.no_grad():
        generator.mapping.w_avg += 1
        for layer in generator.synthesis.conv_layers():
            layer.noise_const += 1
    loaded = as_loaded(generator, tmp_path)
    assert released_encoder.generator is not None and loaded.digest != released_encoder.generator.digest
    check_generator(released_encoder, loaded, "released.pt")


def test_another_generator_than_the_one_in_the_file_is_refused(released_encoder: LoadedEncoder, tmp_path: Path) -> None:
    generator = released_generator()
    with torch.no_grad():
        generator.synthesis.to_rgbs[1].bias += 0.01
    loaded = as_loaded(generator, tmp_path)
    with pytest.raises(CheckpointError, match=r"released\.pt holds an encoder and its generator, .*other weights") as e:
        check_generator(released_encoder, loaded, "released.pt")
    assert loaded.digest in str(e.value)


def test_another_generator_than_the_recorded_one_is_refused(
    tmp_path: Path, generator_file: str, new_encoder: NewEncoder
) -> None:
    path = new_encoder(tmp_path / "e.safetensors", generator_digest="0" * 64)
    generator = load_generator(generator_file)
    with pytest.raises(CheckpointError, match=f"an encoder of generator {'0' * 64}, this run has {generator.digest}"):
        check_generator(load_encoder(path), generator, path)
    unknown = new_encoder(tmp_path / "unknown.safetensors", generator_digest=None)
    check_generator(load_encoder(unknown), generator, unknown)  # nobody says whose it is: its sizes fit


def test_sizes_that_do_not_fit_are_refused(tmp_path: Path, generator_file: str, new_encoder: NewEncoder) -> None:
    path = new_encoder(tmp_path / "e.safetensors")
    boxed = load_generator(generator_file, content_box=(4, 28, 0, 32))
    with pytest.raises(CheckpointError, match=r"e\.safetensors: the encoder reads \(32, 32\) pixels .* \(24, 32\)"):
        check_generator(load_encoder(path), boxed, path)
    wide = replace(boxed, config=RELEASED)
    with pytest.raises(CheckpointError, match=r"gives 8 rows of W\+, the generator has 14"):
        check_generator(load_encoder(path), wide, path)


def test_what_is_known_of_an_encoder_is_not_read_again_until_its_file_changes(
    tmp_path: Path, generator_file: str, new_encoder: NewEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSAP_CACHE", str(tmp_path / "cache"))
    generator, path = load_generator(generator_file), new_encoder(tmp_path / "e.safetensors", title="mine")
    facts = encoder_facts(path, generator)
    assert (facts.digest, facts.config, facts.title) == (load_encoder(path).digest, load_encoder(path).config, "mine")
    with monkeypatch.context() as patch:
        patch.setattr("tasks.weights.encoders.load_encoder", None)
        assert encoder_facts(path, generator) == facts
    boxed = load_generator(generator_file, content_box=(4, 28, 0, 32))  # of another generator nothing is known
    with pytest.raises(CheckpointError, match="reads"):
        encoder_facts(path, boxed)
    Path(new_encoder(tmp_path / "other.safetensors", seed=1)).replace(path)
    assert encoder_facts(path, generator).digest == load_encoder(path).digest != facts.digest
    (tmp_path / "cache" / "encoders.json").write_text("{")
    assert encoder_facts(path, generator).digest == load_encoder(path).digest  # nothing hangs on it
