"""An edit of equal effect to its success on faces that the published detector finds: inverted, turned, measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from domains.domain import load_domain
from lsap_archive import open_archive
from lsap_core.encoders import Encoder, EncoderConfig
from lsap_core.generators.generator import Generator
from lsap_core.images import to_uint8
from tasks.weights.encoders import encode_encoder
from tasks.weights.generators import save_generator
from tasks.weights.packaged_mtcnn import packaged_folder, read_packaged
from tests.rehearsal.files import write_files
from tests.rehearsal.turned_head import CONFIG, TURN, head_generator

LSAP = Path(sys.executable).with_name("lsap")
NUM_IMAGES, CHANGE = 8, 0.5


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> Path:
    """A folder with weights, images, encoder and direction."""
    detector = packaged_folder()
    if detector is None:
        pytest.skip("the package mtcnn is not installed: call `make rehearse-equal-effect`")
    made = Path(request.config.getoption("--rehearse")).absolute() / "equal-effect"
    (made / "images").mkdir(parents=True)
    (made / "weights").mkdir()
    for net in ("pnet", "rnet", "onet"):  # as published: a dictionary in a file of NumPy
        arrays: Any = {name: tensor.numpy() for name, tensor in read_packaged(detector / f"{net}.lz4", net).items()}
        np.save(made / "weights" / f"{net}.npy", arrays)
    write_files(load_domain("face"), CONFIG, made / "weights", roles={"lpips-vgg", "lpips-alex"})
    generator = head_generator()
    digest = save_generator(generator, str(made / "generator.safetensors"))
    with torch.no_grad():
        pixels = to_uint8(generator.synthesize(generator.map(codes())))
    for row, image in enumerate(pixels):
        Image.fromarray(image).save(made / "images" / f"{row}.png")
    (made / "encoder.safetensors").write_bytes(encoder_file(generator, digest))
    torch.save(torch.eye(CONFIG.w_dim)[TURN : TURN + 1], made / "turn.pt")
    return made


def codes() -> torch.Tensor:
    return torch.randn(NUM_IMAGES, CONFIG.z_dim, generator=torch.Generator().manual_seed(3))


def encoder_file(generator: Generator, digest: str) -> bytes:
    """An encoder that was not trained: its codes lie around the mean, and there is a face as well."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = Encoder(EncoderConfig.for_generator(CONFIG, heads="offsets", backbone="small"))
    encoder.w_avg.copy_(generator.mapping.w_avg)
    return encode_encoder(encoder, generator_digest=digest)


@pytest.mark.rehearsal
@pytest.mark.ray
@pytest.mark.slow
def test_an_edit_of_equal_effect_succeeds(folder: Path) -> None:
    """`make rehearse-equal-effect`: by what is measured heads have turned as far as was asked for, in the mean."""
    archive = str(folder / "archive")
    shared = {
        "archive": archive,
        "domain": "face",
        "generator": str(folder / "generator.safetensors"),
        "workers": {"count": 1, "device": "cpu"},
    }
    source = {"source": str(folder / "images")}
    turned = {"direction": str(folder / "turn.pt"), "equal_effect": {"attribute": "yaw", "change": CHANGE}}
    inversion = {"methods": ["e4e"], "encoders": {"e4e": str(folder / "encoder.safetensors")}}
    lsap(folder, "invert", shared | source | inversion | {"anchor": {"num_samples": 500}})
    edited = lsap(
        folder,
        "edit",
        shared | {"edits": {"turned": turned}, "calibration_images": NUM_IMAGES, "calibration_synthetic": 64},
    )
    assert edited["refused"] == {} and edited["by_status"] == {"ok": NUM_IMAGES}
    lsap(folder, "evaluate", shared | source | {"identity": [], "lpips": ["lpips-alex"]})

    opened = open_archive(archive)
    (run,) = (run for run in opened.runs if run.method == "e4e/turned")
    calibration = run.config["calibration"]
    print(json.dumps(calibration))
    assert calibration["response"] == pytest.approx(CHANGE, abs=calibration["tolerance"])
    (found,) = opened.sql(
        "SELECT avg(after.value - before.value) AS change, count(*) AS n "
        'FROM measurements AS after JOIN measurements AS before USING (image_id, measure, "by") '
        "WHERE measure = 'attribute' AND \"by\" = 'yaw' AND after.method = 'e4e/turned' AND before.method = 'e4e'"
    ).to_pylist()
    assert found["n"] == calibration["num_images"] == NUM_IMAGES
    assert found["change"] / calibration["deviation"] == pytest.approx(CHANGE, abs=2 * calibration["tolerance"])


def lsap(folder: Path, verb: str, request: dict[str, Any]) -> dict[str, Any]:
    """What a command tells."""
    path = folder / f"{verb}.yaml"
    path.write_text(yaml.safe_dump(request))
    variables = {"LSAP_BACKBONES": str(folder / "weights"), "LSAP_OTHER_WEIGHTS": "1"}
    done = subprocess.run(
        [str(LSAP), "run", verb, str(path), "--json"], env=os.environ | variables, stdout=subprocess.PIPE, check=True
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told
