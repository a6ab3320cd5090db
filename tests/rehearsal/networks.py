"""Every published file of the paper's experiments, in its published layout, for a thin generator.

What a layout fixes is as published: names, nesting, and every width that is not the generator's.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lsap_core.generators.checkpoints import CanonicalCheckpoint, to_rosinality_document
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator
from lsap_core.refinement.hfgi_checkpoints import HFGI
from lsap_core.refinement.hfgi_networks import HfgiConfig
from lsap_core.refinement.hyperstyle_checkpoint import HYPERSTYLE
from lsap_core.refinement.hyperstyle_networks import HyperStyleConfig
from lsap_core.refinement.network_files import NetworkForm
from lsap_core.refinement.sfe_checkpoints import SFE
from lsap_core.refinement.sfe_networks import SfeConfig
from tasks.weights.refiners import encode_networks
from tests.rehearsal.filled import below, filled, published
from tests.tensorflow_pickles import pickled_tensorflow, tensorflow_network

SPACES = ("W+", "F4", "F6", "F8", "F10")
"""Of which SAM's released predictor has heads."""


def as_torch(document: object) -> bytes:
    """The file that `torch.save` writes; tensors that are one are there once."""
    file = io.BytesIO()
    torch.save(document, file)
    return file.getvalue()


@dataclass(frozen=True)
class Published:
    """Documents of the files that belong to one generator."""

    config: GeneratorConfig

    @cached_property
    def network(self) -> Generator:
        """Random weights, and means as trainings leave them."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            network = Generator(self.config)
            for layer in network.synthesis.conv_layers():
                layer.noise_strength.fill_(0.05)
            for layer in network.synthesis.to_rgbs:
                layer.weight *= 0.3  # most values of its images lie in [-1, 1]
            codes = network.map(torch.randn(4096, self.config.z_dim))
            network.mapping.w_avg.copy_(codes.mean(dim=0))
        return network

    @cached_property
    def checkpoint(self) -> CanonicalCheckpoint:
        return CanonicalCheckpoint(self.config, dict(self.network.state_dict()))

    @cached_property
    def decoder(self) -> dict[str, Tensor]:
        """The generator as files of encoders and refiners carry it."""
        state: dict[str, Tensor] = self.generator()["g_ema"]
        return state

    @cached_property
    def mean(self) -> Tensor:
        """Of W, for each row."""
        return self.network.mapping.w_avg.detach().repeat(self.config.num_ws, 1)

    def generator(self) -> dict[str, Any]:
        """rosinality's layout: what a conversion of a published generator holds."""
        document = to_rosinality_document(self.checkpoint)
        return {name: document[name] for name in ("g_ema", "latent_avg")}

    def pickled(self) -> bytes:
        """NVlabs' layout of the first StyleGAN2: the averaged generator last, as TensorFlow pickled it."""
        network = tensorflow_network(self.checkpoint)
        return pickled_tensorflow((network, network, network))

    def encoder(self, table: str, encoder_type: str, **options: Any) -> dict[str, Any]:
        """pSp's and e4e's layout."""
        state = below("encoder", self._encoder(table)) | below("decoder", self.decoder)
        opts = {"encoder_type": encoder_type, "start_from_latent_avg": True, "input_nc": 3, **options}
        return {"state_dict": state, "latent_avg": self.mean, "opts": opts}

    def ganinverter(self) -> dict[str, Any]:
        """GANInverter's layout, in which LSAP_E was released."""
        encoder = below("encoder", self._encoder("e4e_encoder")) | {"latent_avg": self.mean}
        opts = {"encoder_type": "Encoder4Editing", "start_from_latent_avg": True}
        return {"encoder": encoder, "decoder": self.decoder, "opts": opts, "global_step": 1, "best_val_loss": None}

    def hfgi(self) -> dict[str, Any]:
        """HFGI's layout, with the e4e encoder and the generator in it."""
        found = self.encoder("e4e_encoder", "Encoder4Editing", stylegan_size=self.config.resolution)
        for module, part in (("residue", "encoder"), ("grid_align", "aligner")):
            found["state_dict"] |= below(module, _part(part, self._own(HFGI, self._hfgi)))
        return found

    def own_hfgi(self, generator_digest: str, encoder_digest: str) -> bytes:
        """HFGI's networks as a training of this project leaves them."""
        return encode_networks(
            HFGI,
            self._hfgi,
            {name: tensor.clone() for name, tensor in self._own(HFGI, self._hfgi).items()},
            generator_digest=generator_digest,
            encoder_digest=encoder_digest,
        )

    def sam(self) -> dict[str, Any]:
        """SAM's layout."""
        return {"sd_base": filled(published("sam_deeplab"))} | {
            space: filled(published("sam_layer_head")) for space in SPACES
        }

    def hyperstyle(self) -> dict[str, Any]:
        """HyperStyle's layout."""
        config = HyperStyleConfig.for_generator(self.config)
        hypernet: dict[str, Tensor] = {}
        for name, tensor in self._own(HYPERSTYLE, config).items():
            hypernet |= dict.fromkeys(_in_hyperstyle(name, config), tensor)
        return {
            "state_dict": below("hypernet", hypernet) | below("decoder", self.decoder),
            "latent_avg": self.mean,
            "opts": {
                "encoder_type": "SharedWeightsHyperNetResNet",
                "output_size": self.config.resolution,
                "input_nc": 6,
            },
            "global_step": 1,
            "best_val_loss": None,
        }

    def sfe(self) -> dict[str, Any]:
        """StyleFeatureEditor's layout, of its light files: Inverter and Feature Editor."""
        found = self._own(SFE, SfeConfig.for_generator(self.config, backbone="iresnet_50"))
        state = below("inverter", _part("inverter", found)) | below("encoder", _part("editor", found))
        return {"state_dict": state, "latent_avg": self.mean[0]}

    @property
    def _hfgi(self) -> HfgiConfig:
        return HfgiConfig.for_generator(self.config)

    def _encoder(self, table: str) -> dict[str, Tensor]:
        """With as many heads as the generator has rows."""
        heads = tuple(f"styles.{row}." for row in range(self.config.num_ws))
        shapes = published(table)
        return filled(
            {name: shape for name, shape in shapes.items() if not name.startswith("styles.") or name.startswith(heads)}
        )

    @staticmethod
    def _own(form: NetworkForm[Any, Any], config: Any) -> dict[str, Tensor]:
        """Networks whose widths follow the generator's, under names of ours."""
        shapes = form.shapes(config)
        return filled(shapes, small=[name for name in shapes if name.startswith("shared.")])


def direction(config: GeneratorConfig, seed: int) -> Tensor:
    """One of InterFaceGAN as e4e's authors pass it around, [1, w_dim], of length 1."""
    numbers = torch.randn(1, config.w_dim, generator=torch.Generator().manual_seed(seed))
    return numbers / numbers.norm()


def components(config: GeneratorConfig, count: int = 80) -> dict[str, Tensor]:
    """GANSpace's, as e4e's authors pass them around."""
    numbers = torch.randn(config.w_dim, count, generator=torch.Generator().manual_seed(0))
    vectors = torch.linalg.qr(numbers)[0].T[:, None]
    return {"mean": torch.zeros(1, config.w_dim), "comp": vectors, "std": torch.linspace(2, 0.1, len(vectors))}


def _part(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is below a name, without it."""
    return {each.removeprefix(f"{name}."): tensor for each, tensor in tensors.items() if each.startswith(f"{name}.")}


def _in_hyperstyle(name: str, config: HyperStyleConfig) -> tuple[str, ...]:
    """The published names of a hypernetwork's tensor: matrices that heads share stand in the file again for each."""
    if name.startswith("shared."):
        leaf = name.removeprefix("shared.")
        heads = (f"refinement_blocks.{layer.index}.hypernet.{leaf}" for layer in config.shared_layers)
        return f"shared_weight_hypernet.{leaf}", *heads
    if name.startswith("heads."):
        return (name.replace("heads.", "refinement_blocks.").replace(".output.", ".output.1."),)
    return (name.removeprefix("backbone."),)
