"""Embedding by an encoder: one pass or several, each image for itself, and what does not fit is refused."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lsap_core.alignment import estimate_anchor
from lsap_core.encoders import Encoder, EncoderConfig
from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.inversion import (
    EncoderEmbedder,
    EncoderSettings,
    OptimizationEmbedder,
    OptimizationSettings,
    Parts,
    by_encoder,
)
from lsap_core.inversion.by_encoder import misfit
from lsap_core.inversion.inversion import NOT_STOPPED
from lsap_core.perceptual.features import FeatureDistance, FeatureNet, FeatureNetConfig

Numbers = Callable[..., Tensor]
RandomGenerator = Callable[..., Generator]


def random_encoder(config: GeneratorConfig, *, is_iterative: bool = False, seed: int = 0) -> Encoder:
    """A small encoder whose codes start somewhere and whose batch normalization has seen images."""
    sizes = EncoderConfig.for_generator(config, heads="offsets", backbone="small", is_iterative=is_iterative)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder(sizes)
        encoder.w_avg.normal_()
        with torch.no_grad():
            encoder.train()(torch.randn(4, sizes.in_channels, *sizes.input_size))
    return encoder.eval()


@pytest.fixture
def generator(random_generator: RandomGenerator) -> Generator:
    return random_generator()


@pytest.fixture
def target(numbers: Numbers) -> Tensor:
    return numbers(3, 3, 32, 32).clamp(-1, 1)


# --- what comes back ----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_iterative", [False, True])
def test_large_images_are_rendered_one_by_one(
    is_iterative: bool, generator: Generator, target: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a batch takes the memory of one image; what comes is the same to rounding."""
    encoder = random_encoder(generator.config, is_iterative=is_iterative)
    settings = EncoderSettings(2 if is_iterative else 1)
    together = EncoderEmbedder(generator, encoder, settings)(target, (0, 1, 2))
    rendered: list[int] = []
    synthesize = generator.synthesize

    def counted(codes: Tensor) -> Tensor:
        rendered.append(len(codes))
        return synthesize(codes)

    monkeypatch.setattr(generator, "synthesize", counted)
    monkeypatch.setattr(by_encoder, "PIXELS_AT_ONCE", 32 * 32)
    inversion = EncoderEmbedder(generator, encoder, settings)(target, (0, 1, 2))
    assert rendered == [1, 1, 1] * (3 if is_iterative else 1)  # in every pass, and at the end
    torch.testing.assert_close(inversion.reconstruction, together.reconstruction)
    torch.testing.assert_close(inversion.w_plus, together.w_plus)


def test_codes_are_the_encoders_and_noise_is_the_generators(generator: Generator, target: Tensor) -> None:
    encoder = random_encoder(generator.config)
    inversion = EncoderEmbedder(generator, encoder, EncoderSettings())(target, (0, 1, 2))
    with torch.no_grad():
        wanted = encoder(target)
        torch.testing.assert_close(inversion.w_plus, wanted, rtol=0, atol=0)
        torch.testing.assert_close(inversion.reconstruction, generator.synthesize(wanted))
        again = generator.synthesize(inversion.w_plus, noise=inversion.noise)
    torch.testing.assert_close(inversion.reconstruction, again)
    assert [tuple(maps.shape) for maps in inversion.noise] == [(3, 1, *size) for size in generator.config.noise_sizes]
    assert (inversion.trace.shape, inversion.trace_steps, inversion.trace_terms) == ((3, 0, 0), (), ())
    assert (inversion.stopped_at.tolist(), inversion.num_steps.tolist()) == ([NOT_STOPPED] * 3, [1] * 3)
    assert not inversion.w_plus.requires_grad


def test_what_an_image_gets_does_not_depend_on_neighbours_or_seeds(generator: Generator, target: Tensor) -> None:
    """Also not where the encoder comes from its training: batch normalization must not look at the batch."""
    encoder = random_encoder(generator.config).train()
    embedder = EncoderEmbedder(generator.train(), encoder, EncoderSettings())
    together = embedder(target, (0, 1, 2)).w_plus
    for index in range(3):
        alone = embedder(target[index : index + 1], (99,)).w_plus
        torch.testing.assert_close(alone[0], together[index], rtol=1e-4, atol=1e-4)
    assert not encoder.training and not generator.training


def test_restyle_adds_to_the_code_what_it_sees_is_missing(generator: Generator, target: Tensor) -> None:
    encoder = random_encoder(generator.config, is_iterative=True)
    inversion = EncoderEmbedder(generator, encoder, EncoderSettings(num_passes=3))(target, (0, 1, 2))
    codes = encoder.w_avg.expand(3, -1, -1)
    with torch.no_grad():
        for _ in range(3):
            codes = codes + encoder.offsets(torch.cat([target, generator.synthesize(codes)], dim=1))
    torch.testing.assert_close(inversion.w_plus, codes)
    assert inversion.num_steps.tolist() == [3] * len(inversion.w_plus)


def test_passes_that_were_interrupted_go_on_bit_for_bit(generator: Generator, target: Tensor) -> None:
    embedder = EncoderEmbedder(generator, random_encoder(generator.config, is_iterative=True), EncoderSettings(3))
    target[1, 0, 0, 0] = torch.nan  # what has stopped stays stopped
    through, broken = embedder.start((0, 1, 2)), embedder.start((0, 1, 2))
    steps: list[int] = []
    embedder.advance(through, target, after_step=lambda state: steps.append(state.step))
    embedder.advance(broken, target, until=1)
    loaded = embedder.start((0, 1, 2))
    loaded.load_tensors(broken.to_tensors())
    embedder.advance(loaded, target)
    assert (steps, loaded.step, loaded.stopped_at.tolist()) == ([1, 2, 3], 3, [NOT_STOPPED, 0, NOT_STOPPED])
    for one, other in zip(*(state.to_tensors().values() for state in (loaded, through)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_images_are_cut_and_brought_to_what_the_encoder_reads(numbers: Numbers) -> None:
    """As published: files antialiased, reconstructions averaged, the border of cars left out."""
    config = GeneratorConfig(
        512, (4,) * 8, z_dim=3, w_dim=4, num_mapping_layers=1, image_channels=1, content_box=(64, 448, 0, 512)
    )
    torch.manual_seed(0)
    generator = Generator(config)
    encoder = random_encoder(config, is_iterative=True)
    assert encoder.config.input_size == (192, 256)
    target = numbers(1, 1, 512, 512)
    found = EncoderEmbedder(generator, encoder, EncoderSettings()).codes(target)
    with torch.no_grad():
        view = F.interpolate(target[:, :, 64:448], (192, 256), mode="bilinear", antialias=True)
        start = F.adaptive_avg_pool2d(generator.synthesize(encoder.w_avg[None])[:, :, 64:448], (192, 256))
        wanted = encoder(torch.cat([view, start], dim=1))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("is_iterative", [False, True])
def test_a_code_that_is_not_finite_stops_its_image_alone(
    generator: Generator, target: Tensor, is_iterative: bool
) -> None:
    encoder = random_encoder(generator.config, is_iterative=is_iterative)
    embedder = EncoderEmbedder(generator, encoder, EncoderSettings(num_passes=2 if is_iterative else 1))
    undisturbed = embedder(target, (0, 1, 2))
    spoiled = target.clone()
    spoiled[1, 0, 0, 0] = torch.nan
    inversion = embedder(spoiled, (0, 1, 2))
    assert inversion.stopped_at.tolist() == [NOT_STOPPED, 0, NOT_STOPPED]
    torch.testing.assert_close(inversion.w_plus[1], encoder.w_avg)
    torch.testing.assert_close(inversion.w_plus[[0, 2]], undisturbed.w_plus[[0, 2]])


# --- where an optimization starts ---------------------------------------------------------------------


@pytest.mark.parametrize("space", ["w", "w_plus"])
def test_an_optimization_starts_at_the_encoders_codes(generator: Generator, target: Tensor, space: str) -> None:
    codes = EncoderEmbedder(generator, random_encoder(generator.config), EncoderSettings()).codes(target)
    settings = OptimizationSettings(space=space, start="encoder", num_steps=4, lpips_weight=0, mse_weight=1)
    perceptual = FeatureDistance(FeatureNet(FeatureNetConfig(32, 3)))
    generator.freeze()
    embedder = OptimizationEmbedder(generator, estimate_anchor(generator, num_samples=32), perceptual, settings)
    state = embedder.start((0, 1, 2), codes=codes)
    parts = Parts(generator, embedder.anchor, perceptual, random_encoder(generator.config))
    asked = settings.embedder(parts).start((0, 1, 2), target=target)  # the encoder, by the embedder
    for given in (state, asked):
        torch.testing.assert_close(given.codes.detach(), codes if space == "w_plus" else codes.mean(dim=1))
    from_mean = OptimizationEmbedder(generator, embedder.anchor, perceptual, replace(settings, start="mean"))
    assert not torch.allclose(state.codes, from_mean.start((0, 1, 2)).codes, atol=1e-2)
    embedder.advance(state, target)
    assert embedder.finish(state).w_plus.shape == codes.shape
    for call in (lambda: embedder.start((0, 1, 2)), lambda: embedder(target, (0, 1, 2))):
        with pytest.raises(ConfigError, match='start is "encoder", and there are neither codes nor an encoder'):
            call()
    with pytest.raises(ShapeError, match="first codes are"):
        embedder.start((0, 1, 2), codes=codes[:2])


# --- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_ws": 6}, "gives 6 rows of W+, the generator has 8"),
        ({"w_dim": 8}, "gives rows of 8 numbers, the generator's have 24"),
        ({"image_channels": 1}, "reads images of 1 channels, the generator's have 3"),
        ({"input_size": (24, 32)}, "reads (24, 32) pixels (height, width), the generator's images are looked at with "),
    ],
)
def test_an_encoder_of_another_generator_is_refused(
    generator: Generator, change: dict[str, object], message: str
) -> None:
    sizes = EncoderConfig.for_generator(generator.config, heads="direct", backbone="small")
    assert misfit(sizes, generator.config) is None
    other = Encoder(replace(sizes, **change))
    assert message in str(misfit(other.config, generator.config))
    with pytest.raises(ConfigError) as caught:
        EncoderEmbedder(generator, other, EncoderSettings())
    assert message in str(caught.value) and "or another encoder" in str(caught.value)


def test_only_restyle_refines(generator: Generator) -> None:
    with pytest.raises(ConfigError, match="num_passes is 5, and this encoder reads the image alone"):
        EncoderEmbedder(generator, random_encoder(generator.config), EncoderSettings(num_passes=5))
    with pytest.raises(ConfigError, match="num_passes is 0; wanted at least 1"):
        EncoderSettings(num_passes=0)


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 3, 16, 16), (3, 32, 32)])
def test_images_of_another_shape_are_refused(generator: Generator, shape: tuple[int, ...]) -> None:
    embedder = EncoderEmbedder(generator, random_encoder(generator.config), EncoderSettings())
    for ask in (embedder.codes, lambda images: embedder(images, (0, 1))):
        with pytest.raises(ShapeError) as caught:
            ask(torch.zeros(shape))
        assert str(list(shape)) in str(caught.value) and "3, 32, 32]" in str(caught.value)
