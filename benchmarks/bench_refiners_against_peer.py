"""What HFGI, PTI, SAM and HyperStyle cost here, beside the published code from checkouts of its repositories.

Both sides have the same random weights, the same images and one run. Before anything is timed they have to come to the
same: images (HFGI, HyperStyle), or the loss's terms of every step (PTI, SAM).

    --hfgi CHECKOUT            one inversion and its image: github.com/Tengfei-Wang/HFGI
    --pti CHECKOUT             steps of pivotal tuning: github.com/danielroich/PTI
    --sam CHECKOUT             steps of SAM's optimization: github.com/adobe-research/sam_inversion
    --hyperstyle CHECKOUT      passes of its hypernetwork, and the image: github.com/yuval-alaluf/hyperstyle
    --stylegan2-ada CHECKOUT   the generator of PTI and SAM: github.com/NVlabs/stylegan2-ada-pytorch
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from measurement import Benchmark, Work, parse_shared, run, shared_parser
from published_code import Checkouts, hfgi_modules, hyperstyle_network, nvlabs_generator, pti_coach, sam_modules
from random_generator import NOISE_STRENGTH
from torch import Tensor, nn

from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.generators.checkpoints import build_generator, from_nvlabs, from_rosinality_document
from lsap_core.inversion.schedule import learning_rate
from lsap_core.perceptual.features import FeatureDistance, FeatureNet, FeatureNetConfig
from lsap_core.refinement import Embedded
from lsap_core.refinement.hfgi import HfgiRefiner, HfgiSettings
from lsap_core.refinement.hfgi_checkpoints import HFGI, from_hfgi_document
from lsap_core.refinement.hyperstyle import HyperStyleRefiner, HyperStyleSettings
from lsap_core.refinement.hyperstyle_checkpoint import from_hyperstyle_document
from lsap_core.refinement.hyperstyle_networks import HyperStyleConfig
from lsap_core.refinement.pti import PtiRefiner, PtiSettings
from lsap_core.refinement.sam import SamRefiner, SamSettings

CHANNELS = {"config_f": (32768, 512), "thin": (2048, 64)}
"""Channels of a side are the first number divided by the side, at most the second, which is also the width of codes."""
FORMS = ("ours", "published")
SUMMARY_SIDE = 8
"""Images are compared by the mean size of their values in so many rows and columns of tiles."""
AGREEMENT = 1e-3
PTI = PtiSettings(stop_at_lpips=None, record_every=1)
SAM = SamSettings(record_every=1, prior_samples=600)


@dataclass(frozen=True)
class PeerCell:
    """Sizes of one measurement; a call is one image, refined in `steps` steps (HFGI, HyperStyle: passes)."""

    refiner: str
    table: str
    resolution: int
    steps: int

    @property
    def units(self) -> int:
        """Image-steps of one call; one image of what makes passes."""
        return self.steps if self.refiner in ("pti", "sam") else 1


def build(checkouts: Checkouts, cell: PeerCell, form: str, device: torch.device) -> Work:
    """One image's refinement, or some steps of it, by one side."""
    torch.manual_seed(0)
    works: dict[str, Callable[[Checkouts, PeerCell, str, torch.device], Work]] = {
        "hfgi": _hfgi,
        "hfgi, edit": _hfgi,
        "pti": _pti,
        "sam": _sam,
        "hyperstyle": _hyperstyle,
    }
    return works[cell.refiner](checkouts, cell, form, device)


def _hfgi(checkouts: Checkouts, cell: PeerCell, form: str, device: torch.device) -> Work:
    """The inversion's image from a code and its photo, or that of an edit when the inversion is done."""
    assert checkouts.hfgi is not None
    networks, generators = hfgi_modules(checkouts.hfgi)
    decoder = generators.Generator(cell.resolution, 512, 8, channel_multiplier=2)
    _set_noise_strength(decoder, NOISE_STRENGTH)
    aligner, encoder = networks.ResidualAligner().eval(), networks.ResidualEncoder().eval()
    codes, target = _codes_and_target(num_ws=decoder.n_latent, w_dim=512, side=cell.resolution, device=device)
    edited = codes + 0.1

    if form == "ours":
        named = {"grid_align": aligner, "residue": encoder}
        document = {f"{name}.{key}": value for name, one in named.items() for key, value in one.state_dict().items()}
        refiner = HfgiRefiner(
            build_generator(from_rosinality_document({"g_ema": decoder.state_dict()})).freeze().to(device),
            networks=HFGI.build(from_hfgi_document({"state_dict": document})).to(device),
            settings=HfgiSettings(),
        )
        refined = refiner(Embedded(codes), target).refined
        if cell.refiner == "hfgi, edit":
            return lambda: _summary(refined.synthesize(edited))
        return lambda: _summary(refiner(Embedded(codes), target).refined.synthesize())

    for network in (decoder, aligner, encoder):
        network.to(device)
    looks = {"input_is_latent": True, "randomize_noise": False}

    def seen_image(w_plus: Tensor) -> Tensor:
        image, _ = decoder([w_plus], None, **looks)
        return F.interpolate(image.clamp(-1, 1), size=(256, 256), mode="bilinear")

    def with_residual(w_plus: Tensor, image: Tensor, residual: Tensor) -> Tensor:
        conditions = encoder(aligner(torch.cat((residual, image), dim=1)))
        return _summary(decoder([w_plus], conditions, **looks)[0])

    @torch.no_grad()  # the published script leaves it out, and keeps what a backward pass would need
    def invert() -> Tensor:
        image = seen_image(codes)
        return with_residual(codes, image, _seen(target) - image)

    @torch.no_grad()
    def edit() -> Tensor:
        return with_residual(edited, seen_image(edited), residual)

    with torch.no_grad():
        residual = _seen(target) - seen_image(codes)
    return edit if cell.refiner == "hfgi, edit" else invert


def _hyperstyle(checkouts: Checkouts, cell: PeerCell, form: str, device: torch.device) -> Work:
    """Passes of the hypernetwork from a code, and the image after the last."""
    assert checkouts.hyperstyle is not None
    layers = HyperStyleConfig.for_generator(GeneratorConfig.config_f(cell.resolution)).layers
    network = hyperstyle_network(checkouts.hyperstyle, cell.resolution, layers)
    _set_noise_strength(network, NOISE_STRENGTH)
    num_ws = 2 * (cell.resolution.bit_length() - 2)
    codes, target = _codes_and_target(num_ws=num_ws, w_dim=512, side=cell.resolution, device=device)
    if form == "ours":
        found = from_hyperstyle_document({"state_dict": network.state_dict()})
        assert found.decoder is not None
        refiner = HyperStyleRefiner(
            build_generator(found.decoder).freeze().to(device),
            network=found.network.requires_grad_(False).to(device),
            settings=HyperStyleSettings(num_passes=cell.steps),
        )

        def refine() -> Tensor:
            state = refiner.start(Embedded(codes), target, [0])
            refiner.advance(state, target)
            return _summary(refiner.finish(state).refined.synthesize())

        return refine

    network.to(device)
    asked = {"randomize_noise": False, "return_weight_deltas_and_codes": True}

    @torch.no_grad()
    def invert() -> Tensor:
        images, _ = network.decoder([codes], input_is_latent=True, randomize_noise=False)
        deltas = None
        for _ in range(cell.steps):
            seen = network.face_pool(images)
            images, deltas, _ = network(
                _seen(target), y_hat=seen, codes=codes, weights_deltas=deltas, resize=False, **asked
            )
        return _summary(images)

    return invert


def _pti(checkouts: Checkouts, cell: PeerCell, form: str, device: torch.device) -> Work:
    """Steps of tuning; returns loss, perceptual distance and MSE before each."""
    network, codes, target = _nvlabs(checkouts, cell, NOISE_STRENGTH, device)
    perceptual = _perceptual(cell.resolution, device)
    if form == "ours":
        refiner = PtiRefiner(_ours(network, device), perceptual=perceptual, settings=PTI)
        state = refiner.start(Embedded(codes), target, [0])

        def advance() -> Tensor:
            state.step = 0
            refiner.advance(state, target, until=cell.steps)
            return state.trace[0, : cell.steps, :3].clone()

        return advance

    assert checkouts.pti is not None
    coach = pti_coach(checkouts.pti, network.to(device), perceptual, PTI.learning_rate)

    def tune() -> Tensor:
        terms = []
        for _ in range(cell.steps):
            images = coach.forward(codes)
            loss, mse, distance = coach.calc_loss(images, target, "image", coach.G, True, codes)
            coach.optimizer.zero_grad()
            if distance <= 0:  # its stop, which waits for the device in every step
                break
            loss.backward()
            coach.optimizer.step()
            terms.append(torch.stack([loss.detach(), distance.detach(), mse.detach()]))
        return torch.stack(terms)

    return tune


def _sam(checkouts: Checkouts, cell: PeerCell, form: str, device: torch.device) -> Work:
    """Steps of the optimization, an equal part of the picture in each space; returns the loss and its terms."""
    network, codes, target = _nvlabs(checkouts, cell, 0.0, device)  # it draws noise anew in every step
    perceptual = _perceptual(cell.resolution, device)
    refiner = SamRefiner(_ours(network, device), predictor=None, segment=None, perceptual=perceptual, settings=SAM)
    bands = torch.arange(cell.resolution) * (len(refiner.spaces) + 1) // cell.resolution
    choice = bands[None, :, None].expand(1, -1, cell.resolution)
    state = refiner.start(Embedded(codes), target, [0], choice=choice)
    if form == "ours":

        def advance() -> Tensor:
            state.step = 0
            refiner.advance(state, target, until=cell.steps)
            return state.trace[0, : cell.steps].clone()

        return advance

    assert checkouts.sam is not None
    passes, regularizers = sam_modules(checkouts.sam)
    network = network.to(device)
    masks = {space.name: mask for space, mask in zip(refiner.spaces, state.masks, strict=True)}
    start = {"W+": codes, **{name: torch.zeros(1, *offset.shape[1:], device=device) for name, offset in
             zip(masks, state.offsets, strict=True)}}  # fmt: skip
    latents = {name: values.detach().clone().requires_grad_(True) for name, values in start.items()}
    optimizer = torch.optim.Adam(list(latents.values()), lr=SAM.learning_rate)
    prior = refiner.loss.prior
    assert prior is not None

    def search() -> Tensor:
        recorded = []
        for step in range(cell.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step / SAM.num_steps, SAM.learning_rate)
            images = passes.custom_forward(network, latents, "stylegan2", ",".join(latents), masks)
            seen = F.interpolate(images, size=(256, 256), mode="area").clamp(-1, 1)
            mse, distance = F.mse_loss(seen, target), perceptual(seen, target).mean()
            terms = {
                "lpips": distance,
                "mse": mse,
                "prior": regularizers.compute_mvg(latents, "W+", prior.mean, prior.inverse_covariance),
                "delta": regularizers.delta_loss(latents["W+"]),
                "features": sum(F.mse_loss(latents[name], start[name]) for name in masks),
            }
            loss = sum(getattr(SAM, f"{name}_weight") * term for name, term in terms.items())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorded.append(torch.stack([term.detach().float() for term in (loss, *terms.values())]))
        return torch.stack(recorded)

    return search


def _nvlabs(
    checkouts: Checkouts, cell: PeerCell, noise_strength: float, device: torch.device
) -> tuple[nn.Module, Tensor, Tensor]:
    """The generator of PTI and SAM on the CPU, a code of it and an image."""
    assert checkouts.stylegan2_ada is not None
    base, most = CHANNELS[cell.table]
    network: nn.Module = nvlabs_generator(checkouts.stylegan2_ada)(
        z_dim=most,
        c_dim=0,
        w_dim=most,
        img_resolution=cell.resolution,
        img_channels=3,
        synthesis_kwargs={"channel_base": base, "channel_max": most},
    ).eval()
    _set_noise_strength(network, noise_strength)
    num_ws = 2 * (cell.resolution.bit_length() - 2)
    return network, *_codes_and_target(num_ws=num_ws, w_dim=most, side=cell.resolution, device=device)


def _ours(network: nn.Module, device: torch.device) -> Generator:
    return build_generator(from_nvlabs(network.state_dict())).freeze().to(device)


def _set_noise_strength(network: nn.Module, strength: float) -> None:
    """Of all convolutions; in a new network it is 0, and noise would change nothing."""
    for name, parameter in network.named_parameters():
        if name.endswith(("noise_strength", "noise.weight")):
            nn.init.constant_(parameter, strength)


def _codes_and_target(*, num_ws: int, w_dim: int, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(1)
    codes = torch.randn(1, num_ws, w_dim, generator=stream)
    target = 2 * torch.rand(1, 3, side, side, generator=stream) - 1
    return codes.to(device), target.to(device)


def _perceptual(side: int, device: torch.device) -> FeatureDistance:
    """The network of the loss, the same for both sides, with random weights."""
    torch.manual_seed(2)
    network = FeatureNet(FeatureNetConfig(side, image_channels=3)).requires_grad_(False).eval()
    return FeatureDistance(network).to(device)


def _seen(images: Tensor) -> Tensor:
    """Photos as HFGI's networks read them, 256 pixels wide; files are antialiased."""
    return images if images.shape[-1] == 256 else F.interpolate(images, 256, mode="bilinear", antialias=True)


def _summary(images: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(images.abs(), SUMMARY_SIDE)


def benchmark(checkouts: Checkouts, refiner: str) -> Benchmark[PeerCell]:
    """The benchmark of one refiner."""
    optimizes = refiner in ("pti", "sam")
    return Benchmark(
        name="refiners_against_peer",
        per="image-step" if optimizes else "image",
        difference_of="terms of the loss in every step" if optimizes else "tiles of the image",
        build=functools.partial(build, checkouts),
        smallest=PeerCell(refiner, "thin" if optimizes else "config_f", 256, 1),
        forms=FORMS,
        agreement=AGREEMENT,
    )


if __name__ == "__main__":
    parser = shared_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for name in Checkouts.__dataclass_fields__:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, metavar="CHECKOUT")
    parser.add_argument("--tables", nargs="+", choices=CHANNELS, default=["thin"], help="of PTI's and SAM's generator")
    parser.add_argument("--resolution", type=int, default=256, choices=(256, 512, 1024))
    parser.add_argument("--steps", type=int, default=2, help="steps of one sample of PTI and SAM")
    parser.add_argument("--passes", type=int, default=1, help="of HyperStyle's hypernetwork; published are 5")
    options = parse_shared(parser)
    checkouts = Checkouts(**{name: getattr(options, name) for name in Checkouts.__dataclass_fields__})
    wanted = [name for name in ("hfgi", "hyperstyle", "pti", "sam") if getattr(checkouts, name) is not None]
    if not wanted:
        parser.error("no checkout is named: wanted one or more of --hfgi, --hyperstyle, --pti and --sam")
    if set(wanted) & {"pti", "sam"} and checkouts.stylegan2_ada is None:
        parser.error("--pti and --sam need --stylegan2-ada, the generator that their programs unpickle")
    if min(options.steps, options.passes) < 1:
        parser.error(f"--steps is {options.steps} and --passes {options.passes}; wanted 1 or more")
    for refiner in [part for name in wanted for part in ((name, f"{name}, edit") if name == "hfgi" else (name,))]:
        # The networks of HFGI and HyperStyle have the 512 channels of config-f in them.
        tables = options.tables if refiner in ("pti", "sam") else ["config_f"]
        steps = options.steps if refiner in ("pti", "sam") else options.passes if refiner == "hyperstyle" else 1
        cells = [PeerCell(refiner, table, options.resolution, steps) for table in tables]
        run(benchmark(checkouts, refiner), cells, options)
