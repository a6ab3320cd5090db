"""Every measure of an evaluation against its definition, on images as saved files."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import lpips
import numpy as np
import pytest
import torch
from torch import Tensor

from lsap_core.alignment.anchor import Anchor, estimate_anchor
from lsap_core.encoders import Encoder, EncoderConfig
from lsap_core.errors import ConfigError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator
from lsap_core.images import comparison_view, from_uint8
from lsap_core.inversion.by_encoder import EncoderEmbedder, EncoderSettings
from lsap_core.metrics import ms_ssim, mse, psnr
from lsap_core.perceptual.lpips import LpipsDistance
from tasks.measuring.attributes import EMBEDDED as DIGIT_ATTRIBUTES
from tasks.measuring.measures import (
    MEASURES,
    Batch,
    Instruments,
    Measure,
    Measured,
    MeasureKey,
    Measurements,
    measure_all,
)
from tasks.measuring.neighbours import RealNeighbours
from tasks.measuring.networks import EvaluationChoice, IdentityMeasure, load_evaluation_networks
from tasks.measuring.of_inversions import measure
from tasks.pictures.saved import read_back
from tasks.weights.networks import NetworkChoice, load_networks

CONFIG = GeneratorConfig(32, (4, 4, 4, 4), z_dim=5, w_dim=6, num_mapping_layers=2, image_channels=1)
CPU = torch.device("cpu")
JUDGE = "digits-judge"
CHOICE = EvaluationChoice(lpips=(JUDGE, "digits-features"), identity=(JUDGE,), judge=JUDGE)
COMPARISONS = {
    MeasureKey("mse"),
    MeasureKey("psnr"),
    MeasureKey("ms_ssim"),
    MeasureKey("lpips", JUDGE),
    MeasureKey("lpips", "digits-features"),
    MeasureKey("identity", JUDGE),
    MeasureKey("class_kept", JUDGE),
}


@dataclass
class Shift:
    """A linear edit."""

    offset: float

    def __call__(self, w_plus: Tensor) -> Tensor:
        return w_plus + self.offset

    def inverse(self, w_plus: Tensor) -> Callable[[Tensor], Tensor]:
        return Shift(-self.offset)


def random_generator(config: GeneratorConfig) -> Generator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Generator(config).freeze()


@pytest.fixture(scope="module")
def generator() -> Generator:
    return random_generator(CONFIG)


@pytest.fixture(scope="module")
def anchor(generator: Generator) -> Anchor:
    return estimate_anchor(generator, num_samples=64)


@pytest.fixture(scope="module")
def instruments() -> Instruments:
    networks = load_evaluation_networks(CHOICE, CPU)
    neighbours = RealNeighbours.of(networks["judge"][JUDGE], pictures(20, seed=9).split(8))
    return {**networks, "attribute": DIGIT_ATTRIBUTES, "real": {JUDGE: neighbours}}


def pictures(count: int, *, seed: int = 2, side: int = 32, channels: int = 1) -> Tensor:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, side, side, channels))
    return from_uint8(pixels.astype(np.uint8))


def codes(count: int, config: GeneratorConfig = CONFIG) -> Tensor:
    return torch.randn(count, config.num_ws, config.w_dim, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def evaluate(generator: Generator, anchor: Anchor, instruments: Instruments) -> Callable[..., Measurements]:
    def run(images: Tensor, original: Tensor | None, w_plus: Tensor | None = None) -> Measurements:
        own = codes(len(images)) if w_plus is None else w_plus
        return measure_all(Batch(generator, own, images, original, anchor), instruments)

    return run


def test_identical_images_differ_in_nothing(evaluate: Callable[..., Measurements]) -> None:
    """Identical files: MSE 0, LPIPS 0, PSNR inf, identity 1."""
    images = pictures(3)
    found = evaluate(images, images)
    assert found[MeasureKey("mse")].values == [0.0] * 3
    assert found[MeasureKey("psnr")].values == [math.inf] * 3
    for name in CHOICE.lpips:
        assert found[MeasureKey("lpips", name)].values == [0.0] * 3
    assert found[MeasureKey("identity", JUDGE)].values == pytest.approx([1.0] * 3, abs=1e-6)
    assert found[MeasureKey("class_kept", JUDGE)].values == [1.0] * 3
    for name in DIGIT_ATTRIBUTES:
        assert found[MeasureKey("attribute", name)] == found[MeasureKey("attribute_of_original", name)]


def test_what_is_equal_lies_on_the_better_side(evaluate: Callable[..., Measurements]) -> None:
    """Reports mark the best by what `TABLE` says of a measure's direction."""
    images, others = pictures(8), pictures(8, seed=5)
    equal, unlike = evaluate(images, images), evaluate(images, others)
    large, distorted = pictures(1, side=256, channels=3), pictures(1, side=256, channels=3, seed=5)
    config = GeneratorConfig(256, (2,) * 7, z_dim=2, w_dim=2, num_mapping_layers=1)
    in_five_scales = random_generator(config)
    ssim = MeasureKey("ms_ssim")
    equal[ssim] = measure_all(Batch(in_five_scales, codes(1, config), large, large), {})[ssim]
    unlike[ssim] = measure_all(Batch(in_five_scales, codes(1, config), large, distorted), {})[ssim]
    for key in COMPARISONS:
        best, worse = (np.mean(found[key].values) for found in (equal, unlike))
        assert MEASURES[key.measure].better == ("lower" if best < worse else "higher"), key


def test_identical_large_images_differ_in_nothing_either() -> None:
    config = GeneratorConfig(512, (2,) * 8, z_dim=2, w_dim=2, num_mapping_layers=1)
    large, images = random_generator(config), pictures(1, side=512, channels=3)
    with torch.random.fork_rng(devices=[]):
        distance = LpipsDistance(lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False))
    anchor = estimate_anchor(large, num_samples=8)
    found = measure_all(Batch(large, codes(1, config), images, images, anchor), {"lpips": {"lpips-squeeze": distance}})
    assert found[MeasureKey("mse")].values == [0.0] and found[MeasureKey("psnr")].values == [math.inf]
    assert found[MeasureKey("lpips", "lpips-squeeze")].values == [0.0]
    assert found[MeasureKey("ms_ssim")].values == pytest.approx([1.0], abs=1e-6)
    assert found.keys() == {MeasureKey(name) for name in ("mse", "psnr", "ms_ssim", "sncd", "w_distance")} | {
        MeasureKey("lpips", "lpips-squeeze")
    }


def test_values_are_those_of_the_definitions(
    evaluate: Callable[..., Measurements], generator: Generator, anchor: Anchor, instruments: Instruments
) -> None:
    original, w_plus = pictures(4), codes(4)
    images = original + 0.7 * torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(5))
    found = evaluate(images, original, w_plus)
    seen = read_back(images)
    assert torch.equal(read_back(original), original)
    reported = measure(
        images,
        original,
        w_plus,
        generator=generator,
        anchor=anchor,
        networks=load_networks(NetworkChoice("digits-features", "digits-features", judge=JUDGE), CPU),
    )  # the columns of embedding rows, at the same protocol where nothing is resized
    wanted: dict[MeasureKey, list[float]] = {
        MeasureKey("mse"): reported["mse"],
        MeasureKey("psnr"): [10 * math.log10(4 / value) for value in reported["mse"]],
        MeasureKey("lpips", JUDGE): reported["lpips_judge"],
        MeasureKey("lpips", "digits-features"): reported["lpips"],
        MeasureKey("sncd"): reported["sncd"],
        MeasureKey("w_distance"): reported["w_distance"],
    }
    judge = instruments["judge"][JUDGE].network
    with torch.no_grad():
        a, b, real = judge.features(seen), judge.features(original), judge.features(pictures(20, seed=9))
        probabilities, classes = judge(seen).softmax(dim=1), judge(original).argmax(dim=1)
    wanted[MeasureKey("identity", JUDGE)] = torch.nn.functional.cosine_similarity(a, b).tolist()
    wanted[MeasureKey("class_confidence", JUDGE)] = probabilities.amax(dim=1).tolist()
    wanted[MeasureKey("class_kept", JUDGE)] = (probabilities.argmax(dim=1) == classes).double().tolist()
    wanted[MeasureKey("distance_to_real", JUDGE)] = torch.cdist(a, real).sort(dim=1).values[:, 2].tolist()
    for name, attribute in DIGIT_ATTRIBUTES.items():
        wanted[MeasureKey("attribute", name)] = attribute.measure(seen).tolist()
        wanted[MeasureKey("attribute_of_original", name)] = attribute.measure(original).tolist()
    for key, values in wanted.items():
        assert found[key].values == pytest.approx(values, rel=2e-4, abs=1e-6), key
        assert found[key].problems == [None] * 4
    assert found.keys() == {*wanted, MeasureKey("ms_ssim")}


def test_small_images_have_no_ms_ssim_and_the_reason(evaluate: Callable[..., Measurements]) -> None:
    found = evaluate(pictures(2), pictures(2, seed=3))
    assert found[MeasureKey("ms_ssim")] == Measured([None, None], ["too_small", "too_small"])


def test_cars_are_compared_by_their_content_at_192_by_256() -> None:
    config = GeneratorConfig(
        512, (2,) * 8, z_dim=2, w_dim=2, num_mapping_layers=1, content_box=(64, 448, 0, 512), image_channels=3
    )
    cars, original = random_generator(config), pictures(1, side=512, channels=3)
    images = (original * 0.8).clone()
    images[:, :, :64] = 1.0
    found = measure_all(Batch(cars, codes(1, config), images, original, estimate_anchor(cars, num_samples=8)), {})
    seen, wanted = (read_back(both[:, :, 64:448]) for both in (images, original))
    assert seen.shape == (1, 3, 192, 256)
    for name, metric in (("mse", mse), ("psnr", psnr), ("ms_ssim", ms_ssim)):
        assert found[MeasureKey(name)].values == metric(seen, wanted).double().tolist()
    assert found[MeasureKey("mse")].values[0] < mse(images, original).item()


def test_without_its_original_an_image_has_what_does_not_compare(evaluate: Callable[..., Measurements]) -> None:
    images = pictures(2)
    found, whole = evaluate(images, None), evaluate(images, pictures(2, seed=3))
    comparing = COMPARISONS | {MeasureKey("attribute_of_original", name) for name in DIGIT_ATTRIBUTES}
    assert found.keys() == whole.keys()
    for key, measured in found.items():
        if key in comparing:
            assert measured == Measured([None, None], ["no_original", "no_original"])
        else:
            assert measured == whole[key]


def test_what_cannot_be_measured_of_one_image_is_none_with_a_reason(evaluate: Callable[..., Measurements]) -> None:
    images = pictures(3)
    images[1] = -1.0  # no ink, so no slant
    found = evaluate(images, pictures(3))
    slant = found[MeasureKey("attribute", "slant")]
    assert slant.problems == [None, "not_measurable", None]
    assert [value is None for value in slant.values] == [False, True, False]
    assert found[MeasureKey("attribute_of_original", "slant")].problems == [None] * 3


def test_a_line_of_the_table_is_all_that_a_measure_needs(
    evaluate: Callable[..., Measurements], monkeypatch: pytest.MonkeyPatch
) -> None:
    brightest = Measure("brightest", "higher", lambda batch: batch.seen.amax(dim=(1, 2, 3)))
    monkeypatch.setitem(MEASURES, "brightest", brightest)
    assert evaluate(pictures(2) * 0.5, None)[MeasureKey("brightest")].values == pytest.approx([0.5] * 2, abs=0.01)


class FacesOfBrightImages:
    """Finds a face in every image that is bright."""

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images.flatten(1), images.mean(dim=(1, 2, 3)) > 0


def test_where_one_of_two_images_shows_no_face_the_reason_says_so(generator: Generator) -> None:
    bright, dark = pictures(1).abs(), -pictures(1).abs()
    images, original = torch.cat([bright, bright, dark, dark]), torch.cat([bright, dark, bright, dark])
    identity = {"identity": {"faces": IdentityMeasure(FacesOfBrightImages())}}
    found = measure_all(Batch(generator, codes(4), images, original), identity)[MeasureKey("identity", "faces")]
    assert found.problems == [None, "no_face", "no_face", "no_face"]
    assert found.values == [pytest.approx(1), None, None, None]


def test_each_image_is_measured_for_itself(evaluate: Callable[..., Measurements]) -> None:
    images, original, w_plus = pictures(3), pictures(3, seed=7), codes(3)
    together = evaluate(images, original, w_plus)
    for index in range(3):
        rows = slice(index, index + 1)
        for key, alone in evaluate(images[rows], original[rows], w_plus[rows]).items():
            whole = together[key]
            assert alone.problems == [whole.problems[index]], key
            if whole.problems[index] is None:
                assert alone.values == pytest.approx([whole.values[index]], rel=1e-4, abs=1e-6), key


def test_real_images_lie_nearer_to_real_ones(instruments: Instruments) -> None:
    real, neighbours = pictures(20, seed=9), instruments["real"][JUDGE]
    assert neighbours.distances(real).shape == (20,)
    assert neighbours.distances(torch.full((1, 1, 32, 32), -1.0)).item() > neighbours.distances(real).max()
    with pytest.raises(ConfigError, match="the reference holds 2 usable images; wanted at least 3"):
        RealNeighbours.of(neighbours.judge, [real[:2]])
    with pytest.raises(ConfigError, match="holds 0 usable"):
        RealNeighbours.of(neighbours.judge, [])


# --- codes --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedder(generator: Generator) -> EncoderEmbedder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        encoder = Encoder(EncoderConfig.for_generator(CONFIG, heads="offsets", backbone="small"))
    return EncoderEmbedder(generator, encoder, EncoderSettings())


def test_consistency_is_that_of_edit_render_encode_undo(generator: Generator, embedder: EncoderEmbedder) -> None:
    p = embedder.codes(pictures(3))
    edits = {"none": Shift(0.0), "far": Shift(2.0)}
    found = measure_all(Batch(generator, p, embedder=embedder), {"edit": edits})
    assert found.keys() == {MeasureKey("lec", "none"), MeasureKey("lec", "far")}
    for name, offset in (("none", 0.0), ("far", 2.0)):
        with torch.no_grad():
            q = embedder.encoder(comparison_view(generator.synthesize(p + offset)))
        wanted = (p - (q - offset)).square().sum(dim=(1, 2)).sqrt()
        assert found[MeasureKey("lec", name)].values == pytest.approx(wanted.tolist(), rel=1e-5)


def test_restyle_looks_at_an_edited_image_as_often_as_at_a_photo(generator: Generator) -> None:
    sizes = EncoderConfig.for_generator(CONFIG, heads="offsets", backbone="small")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        encoder = Encoder(replace(sizes, is_iterative=True))
    one, three = (EncoderEmbedder(generator, encoder, EncoderSettings(passes)) for passes in (1, 3))
    images = pictures(2)
    assert torch.equal(three.codes_of_view(images), three.codes(images))  # 32 px: nothing is resized
    edits = {"edit": {"far": Shift(1.0)}}
    values = [measure_all(Batch(generator, e.codes(images), embedder=e), edits) for e in (one, three)]
    assert values[0] != values[1]


def test_disalignment_has_every_space_and_scale(generator: Generator) -> None:
    w = torch.randn(3, CONFIG.w_dim, generator=torch.Generator().manual_seed(2))
    found = measure_all(Batch(generator, codes(3), true_codes=w), {})
    assert {key.measure for key in found} == {
        "disalignment_s_n",
        *(f"disalignment_{space}{scale}" for space in "ws" for scale in ("", "_per_entry", "_frobenius")),
    }
    squares = (codes(3) - w[:, None]).square().sum(dim=(1, 2))
    assert found[MeasureKey("disalignment_w")].values == pytest.approx((squares / CONFIG.num_ws).tolist(), rel=1e-5)
    assert found[MeasureKey("disalignment_w_frobenius")].values == pytest.approx(squares.sqrt().tolist(), rel=1e-5)
    exact = measure_all(Batch(generator, generator.expand(w), true_codes=w), {})
    for key, measured in exact.items():
        assert measured.values == pytest.approx([0.0] * 3, abs=1e-6), key
