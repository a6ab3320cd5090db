"""What the tests of the method share: numbers of published programs, generators filled from names, small ones."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.generators.checkpoints import build_generator, from_rosinality

REFERENCE = Path(__file__).parents[1] / "reference"

# This file is imported, and torch with it, before pytest's hooks could set OMP_NUM_THREADS. Threads that wait for
# each other on a busy machine make the many small operations here a hundred times slower.
torch.set_num_threads(1)


class Reference:
    """Inputs and outputs of one published program (see tests/reference/README.md)."""

    def __init__(self, entry: dict[str, Any]):
        self.outputs = entry["outputs"]
        self.arrays = np.load(REFERENCE / f"{entry['id']}.npz")

    def __getitem__(self, name: str) -> Tensor:
        """An input."""
        return torch.from_numpy(self.arrays[f"in.{name}"])

    def noise(self) -> list[Tensor]:
        """The noise maps of all convolutions, in order."""
        count = sum(name.startswith("in.noise_") for name in self.arrays.files)
        return [self[f"noise_{index}"] for index in range(count)]

    def expected(self, name: str) -> np.ndarray:
        """An output of the published program."""
        return self.arrays[f"out.{name}"]

    def check(self, name: str, found: Tensor | np.ndarray, *, where: Tensor | None = None) -> None:
        """Our value is the published one, within the tolerance that was measured for it.

        Args:
            name: of the output.
            found: our value.
            where: the entries that count; all of them by default.
        """
        values = found.detach().numpy() if isinstance(found, Tensor) else found
        expected = self.expected(name)
        assert values.shape == expected.shape, name
        if where is not None:
            values, expected = values[where.numpy()], expected[where.numpy()]
        np.testing.assert_allclose(values, expected, **self.outputs[name]["tolerance"], err_msg=name)


@pytest.fixture(scope="session")
def reference() -> Callable[[str], Reference]:
    """Numbers of a published program, by name."""
    manifest = json.loads((REFERENCE / "manifest.json").read_text())
    entries = {entry["id"]: entry for entry in manifest["fixtures"]}
    kept: dict[str, Reference] = {}

    def get(name: str) -> Reference:
        if name not in kept:
            kept[name] = Reference(entries[name])
        return kept[name]

    return get


@pytest.fixture(scope="session")
def fill() -> ModuleType:
    """The rule that makes weights from their names."""
    spec = importlib.util.spec_from_file_location("reference_fill", REFERENCE / "fill.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def filled(fill: ModuleType) -> Callable[..., dict[str, Tensor]]:
    """Weights of a published network: `filled("lpips_alex", "plain")` reads its table of names."""

    def get(table: str, family: str) -> dict[str, Tensor]:
        keys = json.loads((REFERENCE / "keys" / f"{table}.json").read_text())["keys"]
        return fill.fill_dict(keys, family)

    return get


@pytest.fixture(scope="session")
def published_generator(filled: Callable[..., dict[str, Tensor]]) -> Callable[[int], Generator]:
    """The 512-channel generator that the published programs ran, frozen; shared, so leave it as it is."""
    kept: dict[int, Generator] = {}

    def get(resolution: int) -> Generator:
        if resolution not in kept:
            state = filled(f"rosinality_generator_{resolution}", "stylegan2")
            kept[resolution] = build_generator(from_rosinality(state)).freeze()
        return kept[resolution]

    return get


@pytest.fixture(params=["activations", "weights"])
def published_in_both_forms(
    request: pytest.FixtureRequest, published_generator: Callable[[int], Generator]
) -> Iterator[Callable[[int], Generator]]:
    """The same, in each form of modulation."""
    used: list[Generator] = []

    def get(resolution: int) -> Generator:
        generator = published_generator(resolution)
        used.append(generator)
        generator.modulation = request.param
        return generator

    yield get
    for generator in used:
        generator.modulation = "activations"


SMALL = GeneratorConfig(32, (20, 16, 12, 8), z_dim=16, w_dim=24, num_mapping_layers=3)
"""Every affine layer maps 24 numbers to at most 20, so that its rank can be full."""


@pytest.fixture(scope="session")
def small_config() -> GeneratorConfig:
    """Sizes of the small generator."""
    return SMALL


@pytest.fixture(scope="session")
def random_generator() -> Callable[..., Generator]:
    """A small generator with random weights, biases and noise strengths; not frozen, a new one at each call."""

    def make(config: GeneratorConfig = SMALL, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Generator:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            generator = Generator(config)
            with torch.no_grad():
                for name, parameter in generator.synthesis.named_parameters():
                    if name.endswith(("bias", "noise_strength")):
                        parameter += 0.2 * torch.randn_like(parameter)
        return generator.to(dtype)

    return make


@pytest.fixture(scope="session")
def numbers() -> Callable[..., Tensor]:
    """Standard normal numbers of a shape, always the same ones for a seed."""

    def make(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)

    return make
