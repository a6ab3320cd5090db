"""Published loops of optimization from checkouts of their repositories, run as they are; nothing of them is here.

Each is given a generator of ours in its own classes, one image and one network that compares images. What it does is
watched from there: the network is looked at once a step, so that is when a step begins.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import itertools
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from measurement import clock
from published_code import importing, operators, stand_in
from random_perceptual import VggTaps
from torch import Tensor, nn

from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.generators.checkpoints.nvlabs import to_nvlabs
from lsap_core.generators.checkpoints.rosinality import to_rosinality
from lsap_core.images import Downsampling, comparison_view
from lsap_core.inversion.inversion import PerceptualDistance
from lsap_core.inversion.noise_maps import NoiseNormalization
from lsap_core.perceptual.lpips import LpipsDistance

ROSINALITY_SAMPLES = 10_000
"""Codes that its projector takes the mean of W from."""
NVLABS_SAMPLES, NVLABS_SEED = 1000, 123
NOISE_WEIGHT = 1e5


def stamp(device: torch.device) -> Any:
    """What the clock says: on a GPU an event, for which nobody waits, else processor time where there is one thread."""
    if device.type != "cuda":
        return clock(device)()
    event = torch.cuda.Event(enable_timing=True)
    event.record()  # type: ignore[no-untyped-call]
    return event


@dataclass
class Run:
    """What came of some steps on one image.

    Attributes:
        stamps: when each step began, by the clock of `stamp`.
        lpips: of the image before each step moved, explored codes; empty where nobody asked.
        noise: the regularization of the noise maps before each step, unweighted; empty where it cannot be watched.
        codes: the codes after the last step, [1, w_dim] or [1, K, w_dim].
        maps: the noise maps after it, [1, 1, side, side] each.
    """

    stamps: list[Any] = field(default_factory=list)
    lpips: list[Tensor] = field(default_factory=list)
    noise: list[Tensor] = field(default_factory=list)
    codes: Tensor = field(default_factory=lambda: torch.empty(0))
    maps: list[Tensor] = field(default_factory=list)

    @property
    def step_seconds(self) -> float:
        """Of one step, from the beginning of the first to the beginning of the last."""
        first, last = self.stamps[0], self.stamps[-1]
        if isinstance(last, float):
            return (last - first) / (len(self.stamps) - 1)
        last.synchronize()
        return first.elapsed_time(last) / 1e3 / (len(self.stamps) - 1)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Beginning:
    """Where a loop that was seeded begins, so that ours can begin there."""

    w_avg: Tensor
    deviation: float
    maps: list[Tensor]
    stream: torch.Generator


@dataclass(frozen=True)
class Loop:
    """A published loop.

    Attributes:
        take: (image, seed, steps, whether to keep the terms) -> what came of it.
        begin: (seed) -> where it begins.
        space: of its codes.
        noise_normalization: of its noise maps.
        downsampling: of its images.
    """

    take: Callable[[Tensor, int, int, bool], Run]
    begin: Callable[[int], Beginning]
    space: str
    noise_normalization: NoiseNormalization
    downsampling: Downsampling


def toolbox_loop(checkout: Path, generator: Generator, perceptual: PerceptualDistance) -> Loop:
    """The optimization of github.com/caopulan/GANInverter, with its own LPIPS where the network is LPIPS-VGG."""
    with importing_toolbox(checkout, perceptual):
        optimization = importlib.import_module("inference.optim_infer")
        model = importlib.import_module("models.stylegan2.model")
        criterion = importlib.import_module("criteria.lpips.lpips")
    device = generator.mapping.w_avg.device
    decoder = rosinality_network(model, generator).to(device).eval()  # its weights take gradients, as published
    sees = perceptual if not isinstance(perceptual, LpipsDistance) else criterion.LPIPS("vgg").to(device).eval()
    decoder.make_noise = lambda: [
        torch.zeros(1, 1, *size, device=device) for size in generator.config.noise_sizes
    ]  # drawn and drawn over in the original; only its shapes count
    inference = object.__new__(optimization.OptimizerInference)  # its __init__ opens files and names a GPU
    inference.device, inference.decoder = device, decoder
    inference.latent_avg, inference.latent_std = _mean_and_deviation(generator)
    regularize = optimization.noise_regularize

    def take(image: Tensor, seed: int, steps: int, keeps_terms: bool) -> Run:
        run = Run()

        def watched(noises: list[Tensor]) -> Tensor:
            value: Tensor = regularize(noises)
            run.maps = noises
            if keeps_terms:
                run.noise.append(value.detach())
            return value

        inference.opts = Namespace(
            w_plus=True, lr=0.1, optim_step=steps, noise=0.05, noise_ramp=0.75, noise_regularize=NOISE_WEIGHT,
            optim_l2_lambda=0.0, optim_lpips_lambda=1.0,
        )  # fmt: skip
        inference.lpips_loss = Watched(sees, run, device, keeps_terms)
        view = comparison_view(image, downsampling="bilinear_clamped")
        with patch.object(optimization, "noise_regularize", watched):
            torch.manual_seed(seed)
            _, run.codes, _ = inference.inverse(image, view, None)
        return run

    def begin(seed: int) -> Beginning:
        stream = torch.Generator().manual_seed(seed)
        sizes = generator.config.noise_sizes
        maps = [torch.empty(1, 1, *size).normal_(generator=stream) for size in sizes]
        return Beginning(inference.latent_avg, float(inference.latent_std), maps, stream)

    return Loop(take, begin, "w_plus", "unbiased", "bilinear_clamped")


def rosinality_loop(checkout: Path, generator: Generator, perceptual: PerceptualDistance) -> Loop:
    """The projector of github.com/rosinality/stylegan2-pytorch, a script; it knows the sizes of config-f alone."""
    if generator.config != GeneratorConfig.config_f(generator.config.resolution):
        raise SystemExit("rosinality's projector knows config-f alone; wanted --tables config_f")
    device = generator.mapping.w_avg.device
    state = to_rosinality(generator.config, generator.state_dict())
    named = "cuda"
    script = (checkout / "projector.py").read_text()
    if f'device = "{named}"' not in script:
        raise SystemExit(f"{checkout / 'projector.py'} names no device where it did; wanted the script of 2021")
    script = script.replace(f'device = "{named}"', f'device = "{device.type}"')

    def take(image: Tensor, seed: int, steps: int, keeps_terms: bool) -> Run:
        run = Run()
        sees = Watched(perceptual, run, device, keeps_terms)
        view = comparison_view(image)

        def load(_: str) -> dict[str, Any]:
            torch.manual_seed(seed)  # here the weights have been drawn that these replace; begins as `begin` does
            return {"g_ema": state}

        stand_ins = {
            "op": operators("op", conv2d_gradfix=F),
            "lpips": stand_in("lpips", PerceptualLoss=lambda **_: sees),
            "tqdm": stand_in("tqdm", tqdm=_Bar),
            "PIL": stand_in("PIL", Image=SimpleNamespace(open=lambda _: SimpleNamespace(convert=lambda _: None))),
            "torchvision": stand_in("torchvision", transforms=_transforms(view[0])),
        }
        arguments = ["projector.py", "--ckpt=", f"--size={generator.config.resolution}", f"--step={steps}", "--w_plus"]
        with (
            importing(checkout, stand_ins),
            patch.object(sys, "argv", [*arguments, "image"]),
            patch.object(torch, "load", load),
            tempfile.TemporaryDirectory() as folder,
        ):
            copied = Path(folder) / "projector.py"
            copied.write_text(script)
            spec = importlib.util.spec_from_file_location("__main__", copied)
            assert spec is not None and spec.loader is not None
            program = importlib.util.module_from_spec(spec)
            with contextlib.suppress(LoopEndsError):
                spec.loader.exec_module(program)
        run.codes, run.maps = program.latent_in.detach(), program.noises
        if len(run.stamps) != steps:
            raise SystemExit(f"rosinality's projector ended after {len(run.stamps)} of {steps} steps")
        return run

    def begin(seed: int) -> Beginning:
        stream = torch.Generator().manual_seed(seed)
        z = torch.randn(ROSINALITY_SAMPLES, generator.config.z_dim, generator=stream)
        with torch.no_grad():
            w = generator.map(z.to(device))
        w_avg = w.mean(0)
        deviation = ((w - w_avg).square().sum() / ROSINALITY_SAMPLES).sqrt()
        shapes = [(1, 1, *size) for size in generator.config.noise_sizes]
        for shape in shapes:
            torch.randn(shape, generator=stream)  # `make_noise`, which is drawn over
        maps = [torch.empty(shape).normal_(generator=stream) for shape in shapes]
        return Beginning(w_avg, float(deviation), maps, stream)

    return Loop(take, begin, "w_plus", "unbiased", "area")


def nvlabs_loop(checkout: Path, generator: Generator, perceptual: PerceptualDistance) -> Loop:
    """The projector of github.com/NVlabs/stylegan2-ada-pytorch, in W."""
    plain = {"imageio": {}, "legacy": {}, "requests": {}, "PIL": {"Image": None}, "PIL.Image": {}}
    stand_ins = {name: stand_in(name, **values) for name, values in plain.items()}
    leave = lambda *_, **__: lambda function: function  # noqa: E731
    stand_ins["click"] = stand_in("click", command=leave, option=leave)
    config, device = generator.config, generator.mapping.w_avg.device
    with importing(checkout, stand_ins, keeps=("torch_utils", "dnnlib")):
        projector = importlib.import_module("projector")
        networks = importlib.import_module("training.networks")
    network = nvlabs_network(networks, generator).to(device)

    def take(image: Tensor, seed: int, steps: int, keeps_terms: bool) -> Run:
        run = Run()
        target: list[Tensor] = []

        def look(images: Tensor, **_: bool) -> Tensor:
            values = in_a_row(perceptual, images / 127.5 - 1)
            if not target:
                target.append(values)
                return values
            run.stamps.append(stamp(device))
            if keeps_terms:
                run.lpips.append((target[0] - values.detach()).square().sum())
            return values

        def keep(given: nn.Module) -> nn.Module:
            moved.append(copy.deepcopy(given))
            return moved[0]

        moved: list[nn.Module] = []
        with (
            patch.object(projector.dnnlib.util, "open_url", lambda _: contextlib.nullcontext()),
            patch.object(torch.jit, "load", lambda _: _Eyes(look)),
            patch.object(projector, "copy", SimpleNamespace(deepcopy=keep)),
        ):
            torch.manual_seed(seed)
            w_plus = projector.project(
                network, (image[0] + 1) * 127.5, num_steps=steps, w_avg_samples=NVLABS_SAMPLES, device=device
            )
        run.codes = w_plus[-1:, 0].detach()
        run.maps = [
            maps.detach()[None, None] for name, maps in moved[0].named_buffers() if name.endswith("noise_const")
        ]
        return run

    def begin(seed: int) -> Beginning:
        z = np.random.RandomState(NVLABS_SEED).randn(NVLABS_SAMPLES, config.z_dim)
        with torch.no_grad():
            w = generator.map(torch.from_numpy(z).float().to(device))
        w_avg = w.mean(0)
        deviation = ((w - w_avg).square().sum() / NVLABS_SAMPLES).sqrt()
        stream = torch.Generator().manual_seed(seed)
        maps = [torch.randn(1, 1, *size, generator=stream) for size in config.noise_sizes]
        return Beginning(w_avg, float(deviation), maps, stream)

    return Loop(take, begin, "w", "biased", "area")


def rosinality_network(model: ModuleType, generator: Generator) -> Any:
    """Our weights in the classes of a checkout's `model`, whose channels are those of config-f: others are put in."""
    config = generator.config
    network = model.Generator(config.resolution, config.w_dim, config.num_mapping_layers)
    if config != GeneratorConfig.config_f(config.resolution):
        _resize(network, model, config)
    network.load_state_dict(to_rosinality(config, generator.state_dict()))
    return network


def _resize(network: Any, model: ModuleType, config: GeneratorConfig) -> None:
    channels, w_dim = config.channels, config.w_dim
    learning = {"lr_mul": config.mapping_lr_multiplier, "activation": "fused_lrelu"}
    widths = [config.z_dim] + [w_dim] * config.num_mapping_layers
    layers = [model.EqualLinear(a, b, **learning) for a, b in itertools.pairwise(widths)]
    network.style = nn.Sequential(model.PixelNorm(), *layers)
    network.input = model.ConstantInput(channels[0])
    network.conv1 = model.StyledConv(channels[0], channels[0], 3, w_dim)
    for index in range(config.num_convs - 1):
        sizes = config.conv_in_channels(index + 1), config.conv_out_channels(index + 1)
        network.convs[index] = model.StyledConv(*sizes, 3, w_dim, upsample=index % 2 == 0)
    for index, width in enumerate(channels):
        to_rgb = model.ToRGB(width, w_dim, upsample=index > 0)
        to_rgb.conv = model.ModulatedConv2d(width, config.image_channels, 1, w_dim, demodulate=False)
        to_rgb.bias = nn.Parameter(torch.zeros(1, config.image_channels, 1, 1))
        if index == 0:
            network.to_rgb1 = to_rgb
        else:
            network.to_rgbs[index - 1] = to_rgb


def nvlabs_network(networks: ModuleType, generator: Generator) -> Any:
    """Our weights in NVlabs' generator."""
    config = generator.config
    network = networks.Generator(
        z_dim=config.z_dim,
        c_dim=0,
        w_dim=config.w_dim,
        img_resolution=config.resolution,
        img_channels=config.image_channels,
        mapping_kwargs={"num_layers": config.num_mapping_layers, "lr_multiplier": config.mapping_lr_multiplier},
        synthesis_kwargs={
            "channel_base": config.channels[-1] * config.resolution,
            "channel_max": max(config.channels),
        },
    ).eval()
    found = network.load_state_dict(to_nvlabs(config, generator.state_dict()), strict=False)
    assert set(found.missing_keys) <= {"mapping.w_avg"} and not found.unexpected_keys, found
    return network


@contextlib.contextmanager
def importing_toolbox(
    checkout: Path, perceptual: PerceptualDistance, others: Mapping[str, ModuleType] | None = None
) -> Iterator[None]:
    """Imports from GANInverter; its LPIPS gets the weights of ours, `others` are in the place of its own modules."""
    package = stand_in("inference")  # its own imports every method at once
    package.__path__ = [str(checkout / "inference")]
    plain: dict[str, dict[str, Any]] = {"cv2": {}, "tqdm": {"tqdm": _Bar}, "loguru": {"logger": None}}
    stand_ins = {name: stand_in(name, **values) for name, values in plain.items()}
    models = None
    if isinstance(perceptual, LpipsDistance):
        network = perceptual.network
        linear = {f"{index}.1.weight": lin.model[1].weight for index, lin in enumerate(network.lins)}
        plain = VggTaps()  # of torch's own convolutions
        plain.load_state_dict(network.net.state_dict())
        models = SimpleNamespace(vgg16=lambda _: SimpleNamespace(features=copy.deepcopy(plain.layers())))
    for name in ("torchvision", "torchvision.transforms"):
        stand_ins[name] = stand_in(name, models=models)
    stand_ins |= {"inference": package, "models.stylegan2.op": operators(), **(others or {})}
    with importing(checkout, stand_ins):
        if isinstance(perceptual, LpipsDistance):
            importlib.import_module("criteria.lpips.utils").get_state_dict = lambda *_: linear
        yield


@contextlib.contextmanager
def drawn_on_cpu(device: torch.device) -> Iterator[None]:
    """Random numbers of a GPU are those that the CPU would draw, so that both sides can have the same."""
    if device.type == "cpu":
        yield
        return
    randn = torch.randn

    def like(values: Tensor) -> Tensor:
        return randn(values.shape).to(values)

    with (
        patch.object(torch, "randn", lambda *shape, device=None: randn(*shape).to(device)),
        patch.object(torch, "randn_like", like),
        patch.object(torch.Tensor, "normal_", lambda values: values.copy_(like(values))),
    ):
        yield


class Watched(nn.Module):
    """A distance that notes when it is asked, and what it answered."""

    def __init__(self, sees: Any, run: Run, device: torch.device, keeps_terms: bool):
        super().__init__()
        self.sees, self.run, self.device, self.keeps_terms = [sees], run, device, keeps_terms

    def forward(self, images: Tensor, target: Tensor, **_: bool) -> Tensor:
        self.run.stamps.append(stamp(self.device))
        distance: Tensor = self.sees[0](images, target)
        if self.keeps_terms:
            self.run.lpips.append(distance.detach().sum())
        return distance


class _Eyes(nn.Module):
    """What NVlabs' projector loads and asks for features."""

    def __init__(self, look: Callable[..., Tensor]):
        super().__init__()
        self.look = look

    def forward(self, images: Tensor, **options: bool) -> Tensor:
        return self.look(images, **options)


class LoopEndsError(Exception):
    """A script's loop is over; what it would write is not wanted."""


class _Bar:
    """In the place of tqdm; a script that leaves its loop ends."""

    def __init__(self, steps: range):
        self.steps = steps

    def __iter__(self) -> Iterator[int]:
        yield from self.steps
        raise LoopEndsError

    def set_description(self, text: str) -> None:
        """Nothing is shown; that the text is made, and the device waited for, is theirs."""


def _transforms(image: Tensor) -> Any:
    """torchvision's transforms of a file, whatever the file is."""
    names = ("Resize", "CenterCrop", "ToTensor", "Normalize")
    return SimpleNamespace(Compose=lambda _: lambda _: image, **{name: lambda *_: None for name in names})


def in_a_row(perceptual: PerceptualDistance, images: Tensor) -> Tensor:
    """Values of an image between two of which the squared Euclidean distance is the perceptual one."""
    features = perceptual.features(images)
    if isinstance(perceptual, LpipsDistance):
        weights = [lin.model[1].weight for lin in perceptual.network.lins]
        scaled = [
            tap * (weight.view(1, -1, 1, 1) / tap[0, 0].numel()).sqrt()
            for tap, weight in zip(features, weights, strict=True)
        ]
    else:
        scaled = [tap * (len(features) * tap[0, 0].numel()) ** -0.5 for tap in features]
    return torch.cat([tap.flatten(1) for tap in scaled], dim=1)


@torch.no_grad()
def _mean_and_deviation(generator: Generator, samples: int = 1000) -> tuple[Tensor, Tensor]:
    """Mean of W, and the root mean square distance of codes from it, as the toolbox computes them."""
    z = torch.randn(samples, generator.config.z_dim, generator=torch.Generator().manual_seed(0))
    w = generator.map(z.to(generator.mapping.w_avg.device))
    mean = w.mean(0)
    return mean, ((w - mean).square().sum() / samples).sqrt()
