"""What is made of stored codes: the inversion's own noise or the generator's, whole or what the content box shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lsap_archive import RunReader
from lsap_core.editing import Direction, along
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator
from lsap_core.presets import method
from tasks.archived.rendering import Renderer, RunPart, Stored
from tasks.weights.generators import load_generator

OPTIMIZED = "stylegan2_w_plus"


def test_an_edit_of_strength_0_is_the_inversion_with_its_own_noise(laboratory: Any) -> None:
    laboratory.fill(3)
    archive = laboratory.invert()
    generator = load_generator(laboratory.generator).generator.freeze()
    ids = ["2.png", "0.png"]
    stored = Stored.of_images(Renderer(generator), archive, ids, OPTIMIZED)
    assert [maps.shape for maps in stored.noise] == [(2, 1, *size) for size in generator.config.noise_sizes]
    direction = Direction("d", torch.randn(1, 8, generator=torch.Generator().manual_seed(0)))
    inversion = stored.show()
    same, other = (stored.show(along(direction, strength)(stored.codes)) for strength in (0.0, 2.0))
    assert torch.equal(same, inversion) and not torch.equal(other, inversion)
    codes = torch.from_numpy(archive.codes(ids, OPTIMIZED))
    noise = [torch.from_numpy(maps)[:, None] for maps in archive.noise(ids, OPTIMIZED)]
    with torch.no_grad():
        assert torch.equal(inversion, generator.synthesize(codes, noise=noise))
        assert not torch.equal(inversion, generator.synthesize(codes))


def test_an_encoder_keeps_no_noise_and_its_images_have_the_generators(
    laboratory: Any, new_encoder: Any, tmp_path: Any
) -> None:
    laboratory.fill(2)
    laboratory.encoders = {"e4e": new_encoder(tmp_path / "e4e.safetensors", title="e4e")}
    archive = laboratory.invert(methods=(method("e4e"),))
    generator = load_generator(laboratory.generator).generator.freeze()
    part = RunPart(RunReader.open(laboratory.archive, archive.runs[0].run_id), range(2))
    for stored in (
        Stored.of_images(Renderer(generator), archive, ["0.png"], "e4e"),
        part.stored(Renderer(generator), [0]),
    ):
        assert stored.noise == "constant"
        assert torch.equal(stored.render(), generator.synthesize(stored.codes))


def test_images_of_one_method_that_keep_noise_and_that_do_not_are_shown_together(laboratory: Any, desk: Any) -> None:
    """The newest run of each image counts, whatever the others keep; of edits too."""
    laboratory.fill(3)
    (chosen,) = laboratory.methods
    laboratory.invert(methods=(replace(chosen, keep_noise="none"),))
    for name in ("1.png", "2.png"):
        (laboratory.source / name).unlink()
    laboratory.invert(methods=(replace(chosen, keep_noise="float16"),))
    archive, _ = desk.edit({"right": {"direction": "right", "strength": 2.0}})
    generator = load_generator(laboratory.generator).generator.freeze()
    ids = ["2.png", "0.png"]
    assert archive.has_noise(ids, OPTIMIZED) == [False, True]
    shown = Stored.of_images(Renderer(generator), archive, ids, OPTIMIZED).render()
    codes = torch.from_numpy(archive.codes(ids, OPTIMIZED))
    own = [torch.from_numpy(maps)[:, None] for maps in archive.noise(["0.png"], OPTIMIZED)]
    assert all(torch.equal(maps, maps.half().float()) for maps in own)
    wanted = torch.cat([generator.synthesize(codes[:1]), generator.synthesize(codes[1:], noise=own)])
    torch.testing.assert_close(shown, wanted, rtol=1e-5, atol=1e-5)
    for run in archive.runs:
        part = RunPart(RunReader.open(laboratory.archive, run.run_id), range(run.num_rows))
        stored = part.stored(Renderer(generator), [0])
        assert (stored.noise == "constant") == (run.num_rows == 3)


def test_rows_of_a_run_are_the_images_of_their_ids(laboratory: Any, desk: Any, monkeypatch: Any) -> None:
    """Edited rows too, with the noise of what they edit; and no more of it is read than lies between the rows."""
    laboratory.fill(4)
    laboratory.invert()
    archive, _ = desk.edit({"right": {"direction": "right", "strength": 2.0}})
    generator = load_generator(laboratory.generator).generator.freeze()
    asked: list[range] = []
    noise = RunReader.noise
    monkeypatch.setattr(RunReader, "noise", lambda reader, rows: asked.append(rows) or noise(reader, rows))
    for run in archive.runs:
        part = RunPart(RunReader.open(laboratory.archive, run.run_id), range(4))
        rows, images = (
            part.stored(Renderer(generator), [1, 3]),
            Stored.of_images(Renderer(generator), archive, ["1.png", "3.png"], run.method),
        )
        assert torch.equal(rows.render(), images.render())
        assert torch.equal(rows.noise[-1], torch.from_numpy(archive.noise(["1.png", "3.png"], OPTIMIZED)[-1])[:, None])
    assert set(asked) == {range(1, 4)}


def test_only_the_content_box_is_shown() -> None:
    config = GeneratorConfig(32, (4, 4, 4, 4), z_dim=4, w_dim=4, num_mapping_layers=1, content_box=(4, 28, 0, 32))
    stored = Stored.of_arrays(Renderer(Generator(config).freeze()), torch.ones(2, config.num_ws, 4), None)
    assert stored.show().shape == (2, 3, 24, 32) and stored.render().shape == (2, 3, 32, 32)
    assert torch.equal(stored.show(), stored.render()[:, :, 4:28])


@pytest.mark.parametrize("has_noise", [True, False])
def test_images_are_made_one_by_one_with_their_own_noise(has_noise: bool) -> None:
    config = GeneratorConfig(32, (4, 4, 4, 4), z_dim=4, w_dim=4, num_mapping_layers=1)
    generator, codes = Generator(config).freeze(), torch.randn(2, config.num_ws, 4)
    for layer in generator.synthesis.conv_layers():
        torch.nn.init.constant_(layer.noise_strength, 0.1)
    maps = [torch.randn(2, *size) for size in config.noise_sizes] if has_noise else None
    one, other = Stored.of_arrays(Renderer(generator), codes, maps).one_by_one()
    alone = Stored.of_arrays(Renderer(generator), codes[1:], maps and [of[1:] for of in maps])
    assert torch.equal(other.render(), alone.render())
    assert one.render().shape == (1, 3, 32, 32) and not torch.equal(one.render(), other.render())
