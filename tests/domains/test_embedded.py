"""A domain is its folder: whatever stands in there is found by name, and nothing else has to know of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import torch

from domains.embedded import embedded_folders, parts_of
from domains.network_files import save_network
from lsap_core.perceptual.features import FeatureNet, FeatureNetConfig
from tasks.measuring.attributes import FACES
from tasks.weights.networks import IDENTITY_FILES, LPIPS_TRUNKS

DOMAIN = """\
name: stripes
description: of this test
perceptual: stripes-features
identity: stripes-features
attributes: [brightness]
encoder_training: {backbone: small, augmentation: inverted}
"""

PARTS = """
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from domains.embedded import Attribute, Parts


def load():
    return SimpleNamespace(images=np.full((3, 16, 16), 200, np.uint8), ids=["all/a", "all/b", "all/c"])


def networks():
    from lsap_core.perceptual.features import FeatureNet

    return {"stripes-features": (Path(__file__).parent / "features.safetensors", FeatureNet)}


def quality(sheet):
    return SimpleNamespace(to_dict=lambda: {"sheet": sheet}, table=lambda: "as good as stripes get")


PARTS = Parts(
    sources={"stripes:all": load},
    networks=networks,
    attributes=lambda: {"brightness": Attribute("brightness", "brightness", "", lambda images: images.mean((1, 2, 3)))},
    augmentations={"inverted": lambda image, stream: -image},
    quality=quality,
)
"""

# The folder stands beside the package's own; what tasks and flows say of it is printed as one line of JSON.
ASK = """
import json, sys
import domains
domains.__path__.append(sys.argv[1])

import torch
from domains.domain import load_domain
from flows.commands.cli import main
from flows.parameters.train_encoder import TrainEncoderRun
from tasks.measuring.attributes import load_attribute
from tasks.settings import Settings
from tasks.sources.source import open_source
from tasks.training.data import augment
from tasks.weights.networks import load_networks
from tasks.weights.published import Published

domain = load_domain("stripes")
with open_source("stripes:all[1:]") as source:
    ids = [item.image_id for item in source.items()]
run = TrainEncoderRun(
    source="stripes:all", output="somewhere", domain="stripes", generator="g.pt", training={"identity_weight": 0}
)
spec = run.resolve(Settings()).spec
looked = load_networks(spec.networks, torch.device("cpu")).perceptual
ones = torch.ones(2, 1, 16, 16)
brightness = load_attribute(domain.attributes[0], device=torch.device("cpu"), published=Published(None))
assert TrainEncoderRun(source="s", output="o", augmentation="inverted").augmentation == "inverted"
assert main(["domain", "quality", "stripes", "--json", "--sheet", "s.png"]) == 0
print(json.dumps([ids, looked(ones, ones).tolist(), brightness.measure(ones).tolist(),
                  augment(ones[0], spec.augmentation, 0).mean().item()]))
"""


def test_a_second_domain_is_its_folder_alone(tmp_path: Path) -> None:
    folder = tmp_path / "stripes"
    folder.mkdir()
    (folder / "domain.yaml").write_text(DOMAIN)
    (folder / "parts.py").write_text(PARTS)
    torch.manual_seed(0)
    network = FeatureNet(FeatureNetConfig(resolution=16, image_channels=1, channels=(4, 4)))
    save_network(folder / "features.safetensors", network)
    run = subprocess.run([sys.executable, "-c", ASK, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    *quality, told = run.stdout.splitlines()
    assert json.loads("".join(quality)) == {"sheet": "s.png"}
    assert json.loads(told) == [["all/b", "all/c"], [0.0, 0.0], [1.0, 1.0], -1.0]


def test_no_two_parts_have_one_name() -> None:
    parts = [parts_of(name) for name in embedded_folders()]
    assert parts
    for names in (
        [name for one in parts for name in one.sources],
        [*LPIPS_TRUNKS, *IDENTITY_FILES, *(name for one in parts for name in one.networks())],
        [*FACES, *(name for one in parts for name in one.attributes())],
        ["none", "flip", *(name for one in parts for name in one.augmentations)],
    ):
        assert max(Counter(names).values()) == 1, names


def test_sources_and_the_command_line_do_not_wait_for_torch() -> None:
    ask = """
import contextlib, sys
from flows.commands.cli import main
from tasks.sources.source import open_source
with open_source("digits:test[:3]") as source:
    assert source.describe().num_images == 3
with contextlib.suppress(SystemExit):
    main(["domain", "quality", "--help"])
assert "torch" not in sys.modules
"""
    run = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    assert run.returncode == 0 and "{digits}" in run.stdout, run.stderr
