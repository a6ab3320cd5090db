"""Networks of a refiner by Prefect and Ray Train: the command trains what one process trains, and says where it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.parameters.train_refiner import TrainRefinerRun
from tasks.settings import Settings
from tasks.training.loop import train_networks
from tasks.training.plan import prepare_training
from tasks.weights.refiners import load_refiner_networks

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CONFIG = """\
source: digits:train[:24]
validation_source: digits:test[:4]
domain: digits
training: {batch_size: 4, num_steps: 4, decay_steps: 2}
log_every: 2
validate_every: 2
checkpoint_every: 2
workers: {device: cpu}
"""


def test_a_command_trains_what_one_process_trains(lsap_on_cluster: Any, tmp_path: Path) -> None:
    config, outputs = tmp_path / "training.yaml", [tmp_path / "flow", tmp_path / "alone"]
    config.write_text(CONFIG)
    words = ("--set", f"output={outputs[0]}", "--json")
    finished = lsap_on_cluster.start("run", "train_refiner", str(config), *words).wait()
    assert finished.code == 0, finished.err
    report = json.loads(finished.out)
    assert (report["step"], report["networks"]) == (4, str(outputs[0] / "hfgi.safetensors"))
    assert (report["num_images"], report["best_networks"]) == (24, str(outputs[0] / "best.safetensors"))

    spec = TrainRefinerRun.read(str(config), [f"output={outputs[1]}"]).resolve(Settings()).spec
    prepare_training(spec)
    train_networks(spec, device=torch.device("cpu"))
    config_of_digits = spec.generator.load().config
    one, other = (load_refiner_networks(str(output / "hfgi.safetensors"), config_of_digits) for output in outputs)
    assert one.digest == other.digest
