"""Networks of refiners that can be trained: how each is made, trained and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from lsap_core.editing.directions import Direction, along
from lsap_core.encoders.checkpoints import load_trunk
from lsap_core.errors import ConfigError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator
from lsap_core.inversion.by_encoder import EncoderEmbedder
from lsap_core.inversion.inversion import PerceptualDistance
from lsap_core.refinement.hfgi_checkpoints import HFGI
from lsap_core.refinement.hfgi_fusion import Fusion
from lsap_core.refinement.hfgi_networks import HfgiConfig, HfgiNetworks
from lsap_core.refinement.hyperstyle_checkpoint import HYPERSTYLE
from lsap_core.refinement.hyperstyle_networks import HyperNetwork, HyperStyleConfig
from lsap_core.refinement.network_files import NetworkForm
from lsap_core.refinement.sfe_checkpoints import CLASSIFIER, SFE, load_sfe_backbone
from lsap_core.refinement.sfe_networks import SfeConfig, SfeNetworks
from lsap_core.training.encoder_step import IdentityNetwork
from lsap_core.training.hfgi_settings import HfgiTrainingSettings
from lsap_core.training.hfgi_step import HfgiTraining
from lsap_core.training.hyperstyle_step import HyperStyleTraining, HyperStyleTrainingSettings
from lsap_core.training.sfe_edits import PUBLISHED_CHANNELS, TrainingEdit, code_edit, style_edit
from lsap_core.training.sfe_phase import SfeTrainingParts
from lsap_core.training.sfe_settings import SfeTrainingSettings
from lsap_core.training.sfe_step import EditorTraining, InverterTraining
from tasks.training.start_files import DISCRIMINATORS, from_torch_file, load_discriminator, load_inverter
from tasks.weights.devices import place

Network = TypeVar("Network", bound=nn.Module)
Settings = TypeVar("Settings")
RESNET_34 = "a .pth of torchvision's ResNet-34"
Files = Mapping[str, str]
"""Paths by the name of the field that they were given in."""


@dataclass(frozen=True)
class RefinerParts(Generic[Network, Settings]):
    """What a training is assembled from, on one device. All but `networks` are frozen.

    Attributes:
        networks: before the first step.
        generator: of the images.
        perceptual: the network of the perceptual distance.
        identity: None where the identity term has no weight.
        settings: how to train.
        seed: of everything random.
        embedder: gives the codes that are refined; None where none are.
        files: that the training starts from.
        directions: to edit along, by name.
    """

    networks: Network
    generator: Generator
    perceptual: PerceptualDistance
    identity: IdentityNetwork | None
    settings: Settings
    seed: int
    embedder: EncoderEmbedder | None
    files: Files
    directions: Mapping[str, Direction]


class RefinerSteps:
    """A training as the loop calls it, with codes that are computed from each batch on its way, in eval mode.

    Args:
        training: of the core.
        device: where images are wanted.
        codes: of images, [N, K, w_dim]; None where the training takes images alone.
        takes_seeds: whether a step depends on random numbers of each sample.
    """

    def __init__(
        self,
        training: Any,
        *,
        device: torch.device,
        codes: Callable[[Tensor], Tensor] | None = None,
        takes_seeds: bool = False,
    ):
        self.training = training
        self.device = device
        self.codes = codes
        self.takes_seeds = takes_seeds

    @property
    def step(self) -> int:
        """Steps taken."""
        step: int = self.training.step
        return step

    def advance(self, images: Tensor, sample_seeds: Sequence[int]) -> dict[str, float]:
        """Take one step; what is logged of it."""
        seeds = (sample_seeds,) if self.takes_seeds else ()
        logged: dict[str, float] = self.training.advance(*self._given(images), *seeds)
        return logged

    def validate(self, images: Tensor) -> dict[str, Tensor]:
        """The loss and its terms of each image, [N]."""
        terms: dict[str, Tensor] = self.training.validate(*self._given(images))
        return terms

    def reconstruct(self, images: Tensor) -> Tensor:
        """What refinement makes of images, the same shape."""
        refined: Tensor = self.training.reconstruct(*self._given(images))
        return refined

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; what is frozen stays as it is."""
        state: dict[str, Any] = self.training.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.training.load_state_dict(state)

    def _given(self, images: Tensor) -> tuple[Tensor, ...]:
        images = images.to(self.device)
        return (images,) if self.codes is None else (images, self.codes(images))


@dataclass(frozen=True)
class Trainable(Generic[Network, Settings]):
    """How networks are made, trained and kept.

    Attributes:
        form: of their file.
        first: the networks before the first step, of settings, generator, files and a seed, and sentences about where
            they come from. What no file gives is drawn from torch's random numbers, which have that seed.
        view: height and width of what is read of an image, in pixels.
        steps: the training.
        files: fields of the files that it may start from.
        has_encoder: whether codes of an encoder are refined, or guide edits.
        edits: names of the edits that settings ask for; none where there is nothing to edit.
        lies_in_square: whether images lie in the generator's square, also where they fill a part of it.
    """

    form: NetworkForm[Any, Network]
    first: Callable[[Settings, GeneratorConfig, Files, int], tuple[Network, tuple[str, ...]]]
    view: Callable[[Settings, GeneratorConfig], tuple[int, int]]
    steps: Callable[[RefinerParts[Network, Settings]], RefinerSteps]
    files: tuple[str, ...] = ()
    has_encoder: bool = True
    edits: Callable[[Settings], Iterable[str]] = lambda settings: ()
    lies_in_square: bool = False


# --- HFGI ------------------------------------------------------------------------------------------------------


def _first_hfgi(
    settings: HfgiTrainingSettings, generator: GeneratorConfig, files: Files, seed: int
) -> tuple[HfgiNetworks, tuple[str, ...]]:
    config = HfgiConfig.for_generator(generator, widths=settings.widths, view_side=settings.view_side)
    networks = HfgiNetworks(config)
    return networks.start_without_effect() if settings.starts_without_effect else networks, ()


def _hfgi_steps(parts: RefinerParts[HfgiNetworks, HfgiTrainingSettings]) -> RefinerSteps:
    training = HfgiTraining(
        parts.networks, parts.generator, parts.perceptual, parts.identity, parts.settings, seed=parts.seed
    )
    return RefinerSteps(
        training, device=_device(parts.generator), codes=_embedder(parts).codes_of_view, takes_seeds=True
    )


# --- HyperStyle ------------------------------------------------------------------------------------------------


def _hyper_config(settings: HyperStyleTrainingSettings, generator: GeneratorConfig) -> HyperStyleConfig:
    return HyperStyleConfig.for_generator(generator, backbone=settings.backbone, layers=settings.layers)


def _first_hyperstyle(
    settings: HyperStyleTrainingSettings, generator: GeneratorConfig, files: Files, seed: int
) -> tuple[HyperNetwork, tuple[str, ...]]:
    network = HyperNetwork(_hyper_config(settings, generator))
    backbone = "small" if settings.backbone == "small" else "resnet_34"
    if "backbone_weights" not in files:
        return network, () if backbone == "small" else (_untrained(backbone, RESNET_34),)
    notes = from_torch_file(
        "backbone_weights",
        files["backbone_weights"],
        lambda state: load_trunk(
            network.backbone,
            cast(Mapping[str, Tensor], state),
            backbone=backbone,
            image_channels=generator.image_channels,
            reads_pairs=True,
            seed=seed,
        ),
        wanted=RESNET_34,
    )
    return network, notes


def _hyperstyle_steps(parts: RefinerParts[HyperNetwork, HyperStyleTrainingSettings]) -> RefinerSteps:
    training = HyperStyleTraining(parts.networks, parts.generator, parts.perceptual, parts.identity, parts.settings)
    return RefinerSteps(training, device=_device(parts.generator), codes=_embedder(parts).codes_of_view)


# --- StyleFeatureEditor ----------------------------------------------------------------------------------------


def _first_inverter(
    settings: SfeTrainingSettings, generator: GeneratorConfig, files: Files, seed: int
) -> tuple[SfeNetworks, tuple[str, ...]]:
    networks = SfeNetworks(SfeConfig.for_generator(generator, backbone=settings.backbone, has_editor=False))
    if "backbone_weights" not in files:
        return networks, () if settings.backbone == "small" else (_untrained(settings.backbone, CLASSIFIER),)
    path = files["backbone_weights"]
    from_torch_file("backbone_weights", path, lambda state: load_sfe_backbone(networks, state), wanted=CLASSIFIER)
    return networks, ()


def _inverter_steps(parts: RefinerParts[SfeNetworks, SfeTrainingSettings]) -> RefinerSteps:
    return RefinerSteps(InverterTraining(_sfe_parts(parts), parts.settings), device=_device(parts.generator))


def _first_editor(
    settings: SfeTrainingSettings, generator: GeneratorConfig, files: Files, seed: int
) -> tuple[SfeNetworks, tuple[str, ...]]:
    if "inverter" not in files:
        raise ConfigError(
            "inverter: no file is named, and a Feature Editor is trained for one Inverter: train `refiner: "
            "sfe_inverter` first, and name its sfe_inverter.safetensors as inverter"
        )
    of_file = load_inverter(files["inverter"], generator)
    if of_file.config.backbone != settings.backbone:
        raise ConfigError(
            f"inverter {files['inverter']}: its backbone is {of_file.config.backbone}, and training.backbone is "
            f"{settings.backbone}: set training.backbone to what it has, or name another Inverter"
        )
    config = SfeConfig.for_generator(generator, backbone=settings.backbone, has_finer_shift=settings.has_finer_shift)
    networks = SfeNetworks(config)
    networks.inverter.load_state_dict(of_file.inverter.state_dict())
    return networks, ()


def _editor_steps(parts: RefinerParts[SfeNetworks, SfeTrainingSettings]) -> RefinerSteps:
    edits = [
        _training_edit(name, powers, parts.generator, parts.directions) for name, powers in parts.settings.edits.items()
    ]
    training = EditorTraining(_sfe_parts(parts), _embedder(parts), edits, parts.settings, seed=parts.seed)
    return RefinerSteps(training, device=_device(parts.generator))


def _training_edit(
    name: str, powers: Sequence[float], generator: Generator, directions: Mapping[str, Direction]
) -> TrainingEdit:
    """Along a direction, a power being a strength; or the published one that moves channels of styles."""
    if name in directions:
        return code_edit(name, powers, generator, partial(along, directions[name]))
    return style_edit(name, powers, generator, PUBLISHED_CHANNELS[name])


def _sfe_parts(parts: RefinerParts[SfeNetworks, SfeTrainingSettings]) -> SfeTrainingParts:
    weight, discriminator = parts.settings.adversarial_weight, None
    if weight > 0:
        if "discriminator" not in parts.files:
            raise ConfigError(
                f"discriminator: no file is named, and adversarial_weight is {weight}; wanted {DISCRIMINATORS}, or "
                "training.adversarial_weight=0"
            )
        found = load_discriminator(parts.files["discriminator"], parts.generator.config)
        discriminator = place(found, _device(parts.generator))
    elif "discriminator" in parts.files:
        raise ConfigError(
            "discriminator: a file is named, and adversarial_weight is 0; leave it out, or set the weight"
        )
    return SfeTrainingParts(parts.networks, parts.generator, parts.perceptual, parts.identity, discriminator)


def _content_size(settings: SfeTrainingSettings, generator: GeneratorConfig) -> tuple[int, int]:
    return generator.content_size


# --- what they share -------------------------------------------------------------------------------------------


def _embedder(parts: RefinerParts[Any, Any]) -> EncoderEmbedder:
    assert parts.embedder is not None, "there is an encoder"
    return parts.embedder


def _device(generator: Generator) -> torch.device:
    return generator.mapping.w_avg.device


def _untrained(backbone: str, wanted: str) -> str:
    return (
        f"the {backbone} backbone starts from random numbers, where the published training starts from {wanted}: name "
        "that file as backbone_weights"
    )


TRAINABLE: dict[str, Trainable[Any, Any]] = {
    "hfgi": Trainable(
        HFGI,
        first=_first_hfgi,
        view=lambda settings, generator: Fusion.of(generator, view_side=settings.view_side).view_size,
        steps=_hfgi_steps,
    ),
    "hyperstyle": Trainable(
        HYPERSTYLE,
        first=_first_hyperstyle,
        view=lambda settings, generator: _hyper_config(settings, generator).input_size,
        steps=_hyperstyle_steps,
        files=("backbone_weights",),
    ),
    "sfe_inverter": Trainable(
        SFE,
        first=_first_inverter,
        view=_content_size,
        steps=_inverter_steps,
        files=("backbone_weights", "discriminator"),
        has_encoder=False,
        lies_in_square=True,
    ),
    "sfe": Trainable(
        SFE,
        first=_first_editor,
        view=_content_size,
        steps=_editor_steps,
        files=("inverter", "discriminator"),
        edits=lambda settings: settings.edits,
        lies_in_square=True,
    ),
}
