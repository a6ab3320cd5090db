"""Published refiners from checkouts of their repositories, as they are: imported from there, nothing of them is here.

Programs of one kind bring packages of the same names (`models`, `training`, `utils`): each is imported by itself and
then taken out of `sys.modules` again. What they import and a measurement does not use (logging, plotting, downloads) is
replaced by empty modules, and CUDA kernels that are compiled at import by operators of torch.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsap_core.perceptual.features import FeatureDistance


@dataclass(frozen=True)
class Checkouts:
    """Where repositories lie; None for what is not measured.

    Attributes:
        hfgi: github.com/Tengfei-Wang/HFGI.
        pti: github.com/danielroich/PTI.
        sam: github.com/adobe-research/sam_inversion.
        hyperstyle: github.com/yuval-alaluf/hyperstyle.
        stylegan2_ada: github.com/NVlabs/stylegan2-ada-pytorch, whose generator PTI and SAM unpickle.
    """

    hfgi: Path | None = None
    pti: Path | None = None
    sam: Path | None = None
    hyperstyle: Path | None = None
    stylegan2_ada: Path | None = None


class FusedLeakyReLU(nn.Module):
    """sqrt(2) leaky_relu(x + bias), what `fused_bias_act` computes."""

    def __init__(self, channel: int, negative_slope: float = 0.2, scale: float = 2**0.5):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channel))
        self.negative_slope = negative_slope
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """Features [N, C, ...] of the same shape."""
        return fused_leaky_relu(features, self.bias, self.negative_slope, self.scale)


def fused_leaky_relu(features: Tensor, bias: Tensor, negative_slope: float = 0.2, scale: float = 2**0.5) -> Tensor:
    """scale leaky_relu(x + bias), with a bias for each channel."""
    shape = (1, -1, *(1 for _ in features.shape[2:]))
    return F.leaky_relu(features + bias.view(shape), negative_slope) * scale


def upfirdn2d(images: Tensor, kernel: Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
    """Zeros between pixels, padding, a filter and every `down`-th pixel, of images [N, C, H, W]."""
    channels = images.shape[1]
    if up > 1:
        one = torch.ones(channels, 1, 1, 1, dtype=images.dtype, device=images.device)
        images = F.conv_transpose2d(images, one, stride=up, groups=channels)
        images = F.pad(images, (0, up - 1, 0, up - 1))
    images = F.pad(images, (pad[0], pad[1], pad[0], pad[1]))
    weight = kernel.flip(0, 1).to(images).expand(channels, 1, *kernel.shape)
    return F.conv2d(images, weight, stride=down, groups=channels)


def hfgi_modules(checkout: Path) -> tuple[ModuleType, ModuleType]:
    """Its networks (`ResidualAligner`, `ResidualEncoder`) and its generator (`Generator`)."""
    with importing(checkout, {"models.stylegan2.op": operators()}):
        return (
            importlib.import_module("models.encoders.psp_encoders"),
            importlib.import_module("models.stylegan2.model"),
        )


def nvlabs_generator(checkout: Path) -> type[nn.Module]:
    """The class of generators that PTI and SAM unpickle; `torch_utils` and `dnnlib` stay, as SAM imports them late."""
    with importing(checkout, {}, keeps=("torch_utils", "dnnlib")):
        generator: type[nn.Module] = importlib.import_module("training.networks").Generator
        return generator


def pti_coach(checkout: Path, generator: nn.Module, perceptual: FeatureDistance, learning_rate: float) -> Any:
    """Its `SingleIDCoach` with this generator and network, ready for the first step."""

    nothing: dict[str, dict[str, Any]] = {
        "wandb": {},
        "tqdm": {"tqdm": iter},
        "lpips": {"LPIPS": None},
        "torchvision": {"transforms": None},
        "training.projectors": {"w_projector": None},
        "models.e4e.psp": {"pSp": None},
        "utils.log_utils": {"log_image_from_w": None, "log_images_from_w": None},
    }
    with importing(checkout, {name: stand_in(name, **values) for name, values in nothing.items()}):
        coaches = importlib.import_module("training.coaches.single_id_coach")
        hyperparameters = importlib.import_module("configs.hyperparameters")
    vars(hyperparameters)["pti_learning_rate"] = learning_rate
    coach = object.__new__(coaches.SingleIDCoach)  # its __init__ opens files and names a GPU
    coach.use_wandb = False
    coach.lpips_loss = perceptual
    coach.G = generator.requires_grad_(True)
    coach.optimizer = coach.configure_optimizers()
    return coach


def sam_modules(checkout: Path) -> tuple[ModuleType, ModuleType]:
    """Its forward pass (`custom_forward`), and its regularizers (`compute_mvg`, `delta_loss`)."""
    with importing(checkout / "src", {}):
        return importlib.import_module("model_utils"), importlib.import_module("loss_utils")


def hyperstyle_network(checkout: Path, resolution: int, layers: Sequence[int]) -> Any:
    """Its `HyperStyle` with random weights, without the encoder that gives the first code."""
    from torchvision.models import resnet34  # type: ignore[import-untyped]

    stand_ins = {
        "models.stylegan2.op": operators(),
        "models.encoders.psp": stand_in("models.encoders.psp", pSp=None),
        "torchvision.models": stand_in("torchvision.models", resnet34=lambda pretrained: resnet34()),
    }
    with importing(checkout, stand_ins):
        package = importlib.import_module("models.hyperstyle")
    options = Namespace(
        input_nc=6,
        output_size=resolution,
        layers_to_tune=",".join(map(str, layers)),
        n_hypernet_outputs=3 * (resolution.bit_length() - 1) - 4,
    )
    network: Any = package.HyperStyle.__new__(package.HyperStyle)  # its __init__ downloads
    nn.Module.__init__(network)
    network.opts = options
    with patch.object(torch.Tensor, "cuda", lambda tensor: tensor):  # it makes matrices on a GPU
        network.hypernet = package.SharedWeightsHyperNetResNet(options)
    network.decoder = package.Generator(resolution, 512, 8, channel_multiplier=2)
    network.face_pool = nn.AdaptiveAvgPool2d((256, 256))
    return network.eval()


@contextlib.contextmanager
def importing(root: Path, stand_ins: Mapping[str, ModuleType], *, keeps: tuple[str, ...] = ()) -> Iterator[None]:
    """Imports from a checkout, with other modules in the place of some; afterwards its packages are forgotten.

    Args:
        root: first of all places where modules are looked for.
        stand_ins: modules by full name.
        keeps: packages of the checkout that are not forgotten.

    Raises:
        SystemExit: there is no such folder.
    """
    if not root.is_dir():
        raise SystemExit(f"{root} is no folder; wanted a checkout of the repository that --help names")
    before = dict(sys.modules)
    sys.path.insert(0, str(root))
    sys.modules.update(stand_ins)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(root))
        for name in [name for name in sys.modules if name not in before or name in stand_ins]:
            is_of_root = str(getattr(sys.modules[name], "__file__", None) or root).startswith(str(root))
            if name in stand_ins or (is_of_root and name.partition(".")[0] not in keeps):
                del sys.modules[name]
        sys.modules.update({name: before[name] for name in stand_ins if name in before})


def operators(name: str = "models.stylegan2.op", **others: Any) -> ModuleType:
    """The module of compiled kernels, of operators of torch."""
    kernels = {"FusedLeakyReLU": FusedLeakyReLU, "fused_leaky_relu": fused_leaky_relu, "upfirdn2d": upfirdn2d}
    return stand_in(name, **kernels, **others)


def stand_in(name: str, **values: Any) -> ModuleType:
    """A module of a name that has these values and no others."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)  # what torch asks for of every package that it knows
    module.__dict__.update(values)
    return module
