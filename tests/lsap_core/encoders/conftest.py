"""Names of the published encoders, and a small one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lsap_core.encoders import Encoder, EncoderConfig

KEYS = Path(__file__).parents[2] / "reference" / "keys"
SMALL = EncoderConfig("offsets", "small", num_ws=8, w_dim=20, input_size=(32, 32), image_channels=1)


@pytest.fixture(scope="session")
def published_keys() -> Callable[[str], dict[str, list[int]]]:
    """Names and shapes of a published network."""
    return lambda table: json.loads((KEYS / f"{table}.json").read_text())["keys"]


@pytest.fixture(scope="session")
def small_encoder() -> Callable[..., Encoder]:
    """A new small encoder with random weights and statistics, in eval mode."""

    def make(config: EncoderConfig = SMALL, *, seed: int = 0) -> Encoder:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = Encoder(config)
            for name, buffer in encoder.named_buffers():
                if name.endswith("running_mean"):
                    buffer.normal_(0, 0.1)
                elif name.endswith("running_var"):
                    buffer.uniform_(0.8, 1.2)
        return encoder.eval()

    return make
