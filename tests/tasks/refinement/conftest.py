"""A laboratory whose five images are inverted, what refines them, and networks for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lsap_core.refinement.hfgi_checkpoints import HFGI
from lsap_core.refinement.hfgi_networks import HfgiConfig, HfgiNetworks
from tasks.weights.generators import load_generator
from tasks.weights.refiners import encode_networks
from tests.refining import RefiningDesk


@pytest.fixture
def refining(laboratory: Any) -> RefiningDesk:
    laboratory.fill(5)
    laboratory.invert()
    return RefiningDesk(laboratory)


@pytest.fixture
def hfgi_file(generator_file: str, tmp_path: Path) -> Callable[..., str]:
    """Writes small networks of HFGI with random weights: `hfgi_file(name, seed=1, generator_digest=...)`."""
    loaded = load_generator(generator_file)

    def make(name: str = "hfgi", *, seed: int = 0, **told: Any) -> str:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            networks = HfgiNetworks(HfgiConfig.for_generator(loaded.config, widths="small")).eval()
        path = tmp_path / f"{name}.safetensors"
        about = {"generator_digest": loaded.digest, **told}
        path.write_bytes(encode_networks(HFGI, networks.config, networks.state_dict(), **about))
        return str(path)

    return make
