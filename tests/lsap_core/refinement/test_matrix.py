"""Every refiner of every embedding: what all of them promise, by one table.

A refiner that is added to `REFINERS` needs its line in `SHORT` and, with networks of its own, in `NETWORKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lsap_core.alignment import estimate_anchor
from lsap_core.encoders import Encoder, EncoderConfig
from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.inversion.by_encoder import EncoderSettings
from lsap_core.inversion.by_optimization import OptimizationSettings
from lsap_core.inversion.inversion import EmbeddingSettings, Parts
from lsap_core.perceptual.features import FeatureDistance, FeatureNet, FeatureNetConfig
from lsap_core.presets import REFINERS
from lsap_core.refinement import Embedded, Refinement, RefinementParts, Refiner, StateArray
from lsap_core.refinement.hfgi_networks import HfgiConfig, HfgiNetworks
from lsap_core.refinement.hyperstyle import HyperStyleSettings
from lsap_core.refinement.hyperstyle_networks import HyperNetwork
from lsap_core.refinement.pti_shared import SharedWeights
from lsap_core.refinement.sam_networks import InvertibilityPredictor, PredictorConfig, SamNetworks
from lsap_core.refinement.sfe_networks import SfeConfig, SfeNetworks
from lsap_core.refinement.tuned_weights import noise_of

TALL = GeneratorConfig(32, (12, 10, 8, 6), z_dim=6, w_dim=8, num_mapping_layers=2, image_channels=1, constant=(4, 2))
CONFIG = GeneratorConfig(32, (12, 10, 8, 6), z_dim=6, w_dim=8, num_mapping_layers=2, image_channels=1)
SEEDS = (11, 12, 13)
OPTIMIZED: dict[str, Any] = {"num_steps": 2, "record_every": 1, "sncd_weight": 0.1}

EMBEDDINGS: dict[str, EmbeddingSettings] = {
    "encoder": EncoderSettings(),
    "restyle": EncoderSettings(num_passes=2),
    "w": OptimizationSettings(space="w", **OPTIMIZED),
    "w_plus": OptimizationSettings(space="w_plus", **OPTIMIZED),
    "from_encoder": OptimizationSettings(space="w_plus", start="encoder", **OPTIMIZED),
}

SHORT: dict[str, dict[str, Any]] = {
    "hfgi": {},
    "pti": {"num_steps": 2, "learning_rate": 3e-3, "stop_at_lpips": None, "record_every": 1},
    "pti_shared": {},
    "hyperstyle": {"num_passes": 2, "backbone": "small", "layers": (0, 3, 5, 8)},
    "sam": {"num_steps": 3, "prior_samples": 100, "record_every": 1},
    "sam_toolbox": {"num_steps": 3, "prior_samples": 100, "record_every": 1, "spaces": None},
    "sfe": {},
}
"""Settings of every refiner, small where it searches."""

ROUNDING = {"pti": 0.01, "sam": 1e-3, "sam_toolbox": 1e-3}
"""Of pixels that an image gets alone and in a batch, where Adam's first steps magnify how convolutions round."""


def halves(images: Tensor) -> Tensor:
    """Labels of the upper and the lower half."""
    rows = torch.arange(images.shape[2]) * 2 // images.shape[2]
    return rows[:, None].expand(len(images), *images.shape[2:])


def predictor(config: GeneratorConfig, **placement: Any) -> SamNetworks:
    """Errors about the published threshold, so that not every segment is inverted in W+."""
    made = InvertibilityPredictor(PredictorConfig.for_generator(config, base="small", **placement))
    for index, head in enumerate(made.heads.values()):
        nn.init.constant_(head.get_parameter("m.3.bias"), 0.4 - 0.1 * index)
    return SamNetworks(made, halves)


def hypernetwork(config: GeneratorConfig) -> HyperNetwork:
    """A new one changes nothing."""
    made = HyperNetwork(HyperStyleSettings(**SHORT["hyperstyle"]).config(config))
    for name, parameter in made.named_parameters():
        if name.endswith(("output.weight", "shared.w1")):
            nn.init.normal_(parameter, 0, 0.3)
    return made


def shared_weights(config: GeneratorConfig) -> SharedWeights:
    made = SharedWeights(config)
    nn.init.normal_(made.weights, 0, 0.02)
    return made


NETWORKS: dict[str, Callable[[GeneratorConfig], nn.Module]] = {
    "hfgi": lambda config: HfgiNetworks(HfgiConfig.for_generator(config, widths="small")),
    "pti_shared": shared_weights,
    "hyperstyle": hypernetwork,
    "sam": predictor,
    "sam_toolbox": lambda config: predictor(config, placement="up_conv"),
    "sfe": lambda config: SfeNetworks(SfeConfig.for_generator(config, backbone="small")),
}


@pytest.fixture(scope="module")
def generator(random_generator: Callable[..., Generator], numbers: Callable[..., Tensor]) -> Generator:
    made = random_generator(CONFIG)
    made.mapping.w_avg.copy_(made.map(numbers(200, 6)).detach().mean(dim=0))
    return made.freeze()


@pytest.fixture(scope="module")
def perceptual() -> FeatureDistance:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = FeatureNet(FeatureNetConfig(32, 1, channels=(4, 6, 6)))
    return FeatureDistance(network.requires_grad_(False).eval())


@pytest.fixture(scope="module")
def target(generator: Generator, numbers: Callable[..., Tensor]) -> Tensor:
    """Images of the generator with a bar that no code holds."""
    images = generator.synthesize(generator.map(numbers(3, 6, seed=4))).detach().tanh()
    images[:, :, 20:26, 6:26] = torch.tensor([0.9, -0.9, 0.2])[:, None, None, None]
    return images


@pytest.fixture(scope="module")
def embedded(
    generator: Generator, perceptual: FeatureDistance, target: Tensor
) -> Callable[[str], tuple[Embedded, Tensor]]:
    """What an embedding gives of the images; computed once."""
    anchor, kept = estimate_anchor(generator, num_samples=64), dict[str, Embedded]()

    def encoder(*, is_iterative: bool) -> Encoder:
        sizes = EncoderConfig.for_generator(CONFIG, heads="offsets", backbone="small", is_iterative=is_iterative)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return Encoder(sizes).eval()

    def get(name: str) -> tuple[Embedded, Tensor]:
        if name not in kept:
            settings = EMBEDDINGS[name]
            asked = encoder(is_iterative=name == "restyle") if settings.needs_encoder else None
            embedder = settings.embedder(Parts(generator, anchor, perceptual, asked))
            state = embedder.start(SEEDS, target=target)
            embedder.advance(state, target)
            found = embedder.finish(state)
            kept[name] = Embedded(found.w_plus.detach(), found.noise if settings.keeps_noise else "constant")
        return kept[name], target

    return get


@pytest.fixture(scope="module")
def refiners(generator: Generator, perceptual: FeatureDistance) -> Mapping[str, Refiner[Any]]:
    """All of them, with random networks whose batch statistics are not those of new ones."""
    made = {}
    for name in REFINERS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            networks = NETWORKS[name](CONFIG) if name in NETWORKS else None
            for each, buffer in networks.named_buffers() if networks is not None else ():
                if each.endswith("running_mean"):
                    buffer.normal_(0, 0.1)
        parts = RefinementParts(generator, perceptual, networks)
        made[name] = REFINERS[name].with_settings(SHORT[name]).settings.refiner(parts)
    return made


@dataclass(frozen=True)
class Cell:
    """A refiner, an embedding, and what comes of them."""

    refiner: Refiner[Any]
    embedded: Embedded
    target: Tensor

    def refine(self, *, interrupted_at: int | None = None) -> Refinement:
        state = self.refiner.start(self.embedded, self.target, SEEDS[: len(self.target)])
        if interrupted_at is not None:
            self.refiner.advance(state, self.target, until=interrupted_at)
            saved = state.to_tensors()
            assert int(saved["step"]) == interrupted_at
            state = self.refiner.start(self.embedded, self.target, (1, 2, 3))
            state.load_tensors(saved)
        self.refiner.advance(state, self.target)
        return self.refiner.finish(state)

    def only(self, row: int) -> Cell:
        rows = torch.tensor([row])
        noise = noise_of(self.embedded.noise, rows, len(self.target))
        return Cell(self.refiner, Embedded(self.embedded.w_plus[rows], noise), self.target[rows])


def edit(codes: Tensor) -> Tensor:
    """The same step in every layer."""
    return codes + torch.linspace(-1.0, 1.0, codes.shape[-1])


def described(arrays: tuple[StateArray, ...]) -> dict[str, tuple[tuple[int, ...], int]]:
    return {one.name: (one.shape, len(one.dimensions)) for one in arrays}


@pytest.mark.parametrize("refiner", REFINERS)
@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_what_every_refiner_promises_of_every_embedding(
    refiner: str,
    embedding: str,
    refiners: Mapping[str, Refiner[Any]],
    embedded: Callable[[str], tuple[Embedded, Tensor]],
    generator: Generator,
) -> None:
    cell = Cell(refiners[refiner], *embedded(embedding))
    refinement = cell.refine()
    refined, num_steps = refinement.refined, cell.refiner.settings.num_steps
    inversion, edited = refined.synthesize(), refined.synthesize(edit(refined.w_plus))
    assert refinement.num_steps.tolist() == [num_steps] * 3 and refinement.stopped_at.tolist() == [-1] * 3

    # The code as it was is the refined inversion; an edit shows, and so does the refinement.
    assert inversion.shape == cell.target.shape and inversion.isfinite().all()
    assert torch.equal(refined.synthesize(refined.w_plus.clone()), inversion)
    assert ((edited - inversion).abs().amax(dim=(1, 2, 3)) > 0.01).all()
    plain = generator.synthesize(cell.embedded.w_plus, noise=cell.embedded.noise)
    assert ((inversion - plain).abs().amax(dim=(1, 2, 3)) > 1e-3).all()

    # What is kept is what is declared, and gives the same images.
    arrays = refined.arrays()
    assert described(cell.refiner.state_arrays) == described(cell.refiner.settings.state_arrays(CONFIG))
    assert described(cell.refiner.state_arrays) == {
        name: (tuple(values.shape[1:]), values.ndim - 1) for name, values in arrays.items()
    }
    assert all(values.dtype == torch.float32 for values in arrays.values())
    restored = cell.refiner.restore(Embedded(refined.w_plus, cell.embedded.noise), arrays)
    assert torch.equal(restored.synthesize(), inversion)
    assert torch.equal(restored.synthesize(edit(refined.w_plus)), edited)

    # An edit in S shows as that in W+ does which it is of the generator's layers, unless these were tuned.
    codes = refined.w_plus
    pairs = zip(generator.styles(edit(codes)), generator.styles(codes), strict=True)
    shift = {at: after - before for at, (after, before) in enumerate(pairs)}
    in_s = restored.synthesize(codes, shift)
    assert ((in_s - inversion).abs().amax(dim=(1, 2, 3)) > 0.01).all()
    if not refiner.startswith("pti"):
        torch.testing.assert_close(in_s, edited, rtol=0, atol=1e-4)
    assert torch.equal(restored.synthesize(None, {}), inversion)

    # An image gets alone what it gets in a batch.
    alone = cell.only(1).refine().refined
    pixels = {"rtol": 0.0, "atol": ROUNDING.get(refiner, 1e-4)}
    torch.testing.assert_close(alone.synthesize()[0], inversion[1], **pixels)
    torch.testing.assert_close(alone.synthesize(edit(refined.w_plus)[1:2])[0], edited[1], **pixels)
    its_shift = {at: added[1:2] for at, added in shift.items()}
    torch.testing.assert_close(alone.synthesize(None, its_shift)[0], in_s[1], **pixels)

    # An interruption changes nothing, wherever it comes.
    for step in {1, num_steps // 2}:
        again = cell.refine(interrupted_at=step)
        assert torch.equal(again.refined.synthesize(), inversion)
        assert torch.equal(again.num_steps, refinement.num_steps)
        assert torch.equal(again.stopped_at, refinement.stopped_at)
        torch.testing.assert_close(again.trace, refinement.trace, rtol=0, atol=0, equal_nan=True)


# --- images that are no squares --------------------------------------------------------------------------------


class TwoConvolutions(nn.Module):
    """Taps of images of every size."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, stride=2)])

    def taps(self, images: Tensor) -> list[Tensor]:
        """The output of each."""
        first = self.convs[0](images).relu()
        return [first, self.convs[1](first)]


@pytest.fixture(scope="module")
def tall(random_generator: Callable[..., Generator], numbers: Callable[..., Tensor]) -> RefinementParts[None]:
    made = random_generator(TALL)
    made.mapping.w_avg.copy_(made.map(numbers(200, 6)).detach().mean(dim=0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return RefinementParts(made.freeze(), FeatureDistance(TwoConvolutions().requires_grad_(False)), None)


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_every_embedding_inverts_images_that_are_no_squares(
    embedding: str, tall: RefinementParts[None], numbers: Callable[..., Tensor]
) -> None:
    target, settings = numbers(2, 1, 32, 16).tanh(), EMBEDDINGS[embedding]
    sizes = EncoderConfig.for_generator(TALL, heads="offsets", backbone="small", is_iterative=embedding == "restyle")
    assert sizes.input_size == (32, 16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        encoder = Encoder(sizes).eval() if settings.needs_encoder else None
    anchor = estimate_anchor(tall.generator, num_samples=64)
    found = settings.embedder(Parts(tall.generator, anchor, tall.perceptual, encoder))(target, SEEDS[:2])
    assert found.reconstruction.shape == target.shape and found.w_plus.shape == (2, TALL.num_ws, TALL.w_dim)
    assert [tuple(maps.shape[-2:]) for maps in found.noise] == list(TALL.noise_sizes)
    again = tall.generator.synthesize(found.w_plus, noise=found.noise)
    torch.testing.assert_close(again, found.reconstruction)
    assert not torch.allclose(tall.generator.synthesize(edit(found.w_plus), noise=found.noise), again)
    with pytest.raises(ShapeError, match=r"target images are \[2, 1, 16, 32\]; wanted \[2, 1, 32, 16\]"):
        settings.embedder(Parts(tall.generator, anchor, tall.perceptual, encoder))(target.mT, SEEDS[:2])


@pytest.mark.parametrize("refiner", [name for name in REFINERS if name != "sfe"])
def test_images_that_are_no_squares_are_refined(
    refiner: str, tall: RefinementParts[None], numbers: Callable[..., Tensor]
) -> None:
    target = numbers(2, 1, 32, 16).tanh()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        networks = NETWORKS[refiner](TALL) if refiner in NETWORKS else None
    parts = RefinementParts(tall.generator, tall.perceptual, networks)
    made = REFINERS[refiner].with_settings(SHORT[refiner]).settings.refiner(parts)
    noise = [numbers(2, 1, *size) for size in TALL.noise_sizes]
    refined = Cell(made, Embedded(numbers(2, TALL.num_ws, TALL.w_dim), noise), target).refine().refined
    inversion = refined.synthesize()
    assert inversion.shape == target.shape and inversion.isfinite().all()
    restored = made.restore(Embedded(refined.w_plus, noise), refined.arrays())
    assert torch.equal(restored.synthesize(), inversion)
    assert not torch.allclose(restored.synthesize(edit(refined.w_plus)), inversion)


def test_style_feature_editor_is_refused_where_images_are_no_squares() -> None:
    with pytest.raises(ConfigError, match="makes 32 x 16 pixels from one of 4 x 2: take another refiner"):
        NETWORKS["sfe"](TALL)
