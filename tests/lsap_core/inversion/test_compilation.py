"""Compiled steps beside the plain ones: the same numbers, one form for all methods, and never a reason to fail.

Graphs are captured and differentiated as for any compiler, and run by torch's own operators ("aot_eager"): a C++
compiler takes two minutes for them. One test does, where `--compiler` is said.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lsap_core.alignment import estimate_anchor
from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.inversion import OptimizationEmbedder, OptimizationSettings
from lsap_core.inversion.compilation import Compilation, compiling_pays
from lsap_core.inversion.inversion import Parts
from lsap_core.perceptual.features import FeatureDistance, FeatureNet, FeatureNetConfig
from lsap_core.presets import method

SEEDS = (11, 12, 13)
METHODS = ("lsap_o_w_plus", "stylegan2_w", "lsap_o_w", "stylegan2_w_plus")


@pytest.fixture(scope="module")
def parts(random_generator: Callable[..., Generator]) -> Parts:
    config = GeneratorConfig(16, (6, 5, 4), z_dim=8, w_dim=8, num_mapping_layers=2)
    generator = random_generator(config).freeze()
    torch.manual_seed(0)
    network = FeatureNet(FeatureNetConfig(16, 3, channels=(4, 5)))
    perceptual = FeatureDistance(network.requires_grad_(False).eval())
    return Parts(generator, estimate_anchor(generator, num_samples=200), perceptual)


@pytest.fixture(scope="module")
def target(parts: Parts, numbers: Callable[..., Tensor]) -> Tensor:
    image = parts.generator.synthesize(parts.generator.map(numbers(3, 8, seed=5)))
    return (image / image.abs().amax(dim=(1, 2, 3), keepdim=True)).detach()


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def compilation(told: list[str]) -> Compilation:
    return Compilation(3, tell=told.append, backend="aot_eager")


@pytest.fixture
def refuses_to_compile_again() -> Iterator[None]:
    from torch._dynamo import config

    with config.patch(error_on_recompile=True):
        yield


def embedder(parts: Parts, name: str, compilation: Compilation | None = None) -> OptimizationEmbedder:
    settings = method(name, num_steps=6, record_every=2).settings
    assert isinstance(settings, OptimizationSettings)
    return settings.embedder(replace(parts, compilation=compilation))


@pytest.mark.usefixtures("refuses_to_compile_again")
@pytest.mark.parametrize("name", METHODS)
def test_compiled_steps_give_what_plain_ones_give_and_all_methods_share_one_form(
    name: str, parts: Parts, target: Tensor, compilation: Compilation, told: list[str]
) -> None:
    found, wanted = (embedder(parts, name, each)(target, SEEDS) for each in (compilation, None))
    torch.testing.assert_close(found.w_plus, wanted.w_plus, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.reconstruction, wanted.reconstruction, rtol=0, atol=1e-4)
    for a, b in zip(found.noise, wanted.noise, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.trace, wanted.trace, rtol=1e-3, atol=1e-5, equal_nan=True)
    assert told == ["the optimization of 3 images at once is compiled"]


def test_compiled_steps_that_were_interrupted_go_on_bit_for_bit(
    parts: Parts, target: Tensor, compilation: Compilation
) -> None:
    whole = embedder(parts, "lsap_o_w_plus", compilation)(target, SEEDS)
    first, second = (embedder(parts, "lsap_o_w_plus", compilation) for _ in range(2))
    state, resumed = first.start(SEEDS), second.start((0, 0, 0))
    first.advance(state, target, until=4)
    resumed.load_tensors(state.to_tensors())
    second.advance(resumed, target)
    found = second.finish(resumed)
    assert torch.equal(found.w_plus, whole.w_plus) and torch.equal(found.reconstruction, whole.reconstruction)
    torch.testing.assert_close(found.trace, whole.trace, rtol=0, atol=0, equal_nan=True)


def test_an_image_that_is_not_finite_stops_alone_in_compiled_steps(
    parts: Parts, target: Tensor, compilation: Compilation
) -> None:
    damaged = target.clone()
    damaged[1, 0, 3, 3] = torch.nan
    found, healthy = (embedder(parts, "lsap_o_w_plus", compilation)(each, SEEDS) for each in (damaged, target))
    assert found.stopped_at.tolist() == [-1, 0, -1]
    assert torch.equal(found.w_plus[[0, 2]], healthy.w_plus[[0, 2]])


@pytest.mark.usefixtures("refuses_to_compile_again")
def test_a_batch_of_another_size_takes_the_plain_form(parts: Parts, target: Tensor, compilation: Compilation) -> None:
    found, wanted = (embedder(parts, "lsap_o_w", each)(target[:2], SEEDS[:2]) for each in (compilation, None))
    assert torch.equal(found.w_plus, wanted.w_plus)


def test_what_cannot_be_compiled_runs_plain_and_is_told_once(parts: Parts, target: Tensor) -> None:
    def broken(graph: object, inputs: object) -> None:
        raise RuntimeError("no compiler found\nmany more lines")

    told: list[str] = []
    compilation = Compilation(3, tell=told.append, backend=broken)  # type: ignore[arg-type]
    found, wanted = (embedder(parts, "lsap_o_w_plus", each)(target, SEEDS) for each in (compilation, None))
    assert torch.equal(found.w_plus, wanted.w_plus)
    assert len(told) == 1 and "no compiler found" in told[0] and "compile: never" in told[0]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
def test_the_compilers_code_gives_what_plain_steps_give(
    parts: Parts, target: Tensor, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--compiler"):
        pytest.skip("takes a C++ compiler two minutes: say --compiler")
    told: list[str] = []
    compilation = Compilation(3, tell=told.append)
    found, wanted = (embedder(parts, "lsap_o_w_plus", each)(target, SEEDS) for each in (compilation, None))
    torch.testing.assert_close(found.w_plus, wanted.w_plus, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.trace, wanted.trace, rtol=1e-3, atol=1e-5, equal_nan=True)
    assert told == ["the optimization of 3 images at once is compiled"]


def test_compiling_pays_for_much_work_and_not_for_little() -> None:
    digits = GeneratorConfig(32, (64, 64, 32, 16), w_dim=64, image_channels=1)
    assert not compiling_pays(digits, 256 * 100, "cpu")
    assert compiling_pays(digits, 10_000 * 1000, "cpu")
    assert compiling_pays(GeneratorConfig.config_f(1024), 1000, "cpu")
    assert not compiling_pays(GeneratorConfig.config_f(1024), 10**9, "mps")
