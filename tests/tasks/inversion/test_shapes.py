"""A generator whose images are no squares, from its file to the archive and its edits."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lsap_archive import verify_archive
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator
from lsap_core.images import to_uint8
from lsap_core.presets import method
from tasks.weights.generators import convert_generator, describe_generator, load_generator, save_generator
from tasks.weights.networks import LPIPS_TRUNKS, NetworkChoice
from tasks.weights.published import Published
from tests.rehearsal.filled import filled, published

TALL = GeneratorConfig(64, (8, 8, 8, 6, 4), z_dim=6, w_dim=8, num_mapping_layers=2, constant=(4, 2))


@pytest.fixture
def tall(desk: Any, tmp_path: Path) -> Any:
    """The desk of a laboratory with such a generator, and LPIPS of filled weights, which looks at any shape."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = Generator(TALL)
    for layer in generator.synthesis.conv_layers():
        torch.nn.init.constant_(layer.noise_strength, 0.1)
    save_generator(generator, str(tmp_path / "tall.safetensors"))
    torch.save(filled(published("lpips_alex")), tmp_path / LPIPS_TRUNKS["lpips-alex"])
    desk.laboratory.generator = str(tmp_path / "tall.safetensors")
    networks = NetworkChoice("lpips-alex", "lpips-alex", published=Published(str(tmp_path), takes_others=True))
    desk.laboratory.networks = networks
    return desk


def test_inversions_and_edits_have_the_generators_shape(tall: Any) -> None:
    laboratory = tall.laboratory
    for number, (height, width) in enumerate([(64, 32), (128, 64), (64, 64)]):
        laboratory.put(f"{number}.png", laboratory.picture(number, height, width))
    optimized = method("stylegan2_w_plus", num_steps=2, record_every=2)
    archive = laboratory.invert(methods=(optimized,))
    rows = {row["image_id"]: row for row in archive.rows().to_pylist()}
    assert [rows[name]["status"] for name in ("0.png", "1.png", "2.png")] == ["ok", "ok", "failed"]
    assert rows["2.png"]["reason"] == "wrong_aspect" and "32x64" in rows["2.png"]["message"]
    ids = ["0.png", "1.png"]
    maps = archive.noise(ids, "stylegan2_w_plus")
    assert [one.shape for one in maps] == [(2, *size) for size in TALL.noise_sizes]

    archive, _ = tall.edit({"right": {"direction": "right", "strength": 2}}, keep_images=True)
    generator = load_generator(laboratory.generator).generator
    for index, data in enumerate(archive.images(ids, "stylegan2_w_plus/right")):
        codes = torch.from_numpy(archive.codes(ids[index : index + 1], "stylegan2_w_plus/right"))
        noise = [torch.from_numpy(one[index : index + 1])[:, None] for one in maps]
        with torch.no_grad():
            wanted = to_uint8(generator.synthesize(codes, noise=noise))[0]
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.size == (32, 64)
            assert np.abs(np.asarray(picture).astype(int) - wanted).max() <= 1
    assert verify_archive(laboratory.archive).problems == []

    again = laboratory.invert(methods=(optimized,), fit="crop")
    assert [row["altered"] for row in again.rows().to_pylist() if row["image_id"] == "2.png"][-1] == "cropped"


def test_a_file_says_its_size_in_every_format(tall: Any, tmp_path: Path) -> None:
    place = tall.laboratory.generator
    told = describe_generator(place)
    assert (told["size"], tuple(told["constant"]), told["num_ws"]) == ([64, 32], (4, 2), 10)
    converted = convert_generator(place, str(tmp_path / "tall.pt"))
    assert converted.config == TALL and converted.digest == told["digest"] == load_generator(place).digest
    boxed = load_generator(place, content_box=(0, 64, 4, 28))
    assert boxed.config == replace(TALL, content_box=(0, 64, 4, 28)) and boxed.config.content_size == (64, 24)
