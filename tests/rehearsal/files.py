"""Writes every file that a domain of the paper wants into one folder, under its published name."""

from __future__ import annotations

import io
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from domains.domain import Domain
from lsap_core.encoders import Encoder, EncoderConfig
from lsap_core.generators.config import GeneratorConfig
from lsap_core.images import ContentBox
from tasks.weights.encoders import encode_encoder, load_encoder
from tasks.weights.generators import load_generator
from tests.rehearsal.filled import filled, published, tables
from tests.rehearsal.networks import Published, as_torch, components, direction

SLIGHTLY = 0.01
POINTS = (0.3, 0.7, 0.5, 0.35, 0.65, 0.35, 0.35, 0.55, 0.75, 0.75)
"""Eyes, nose and corners of the mouth in the box of a face: five x, then five y."""
ANSWERS: dict[str, dict[str, Sequence[float]]] = {
    "pnet": {"conv4_2": (0.0, 0.0, 0.0, 0.0)},
    "rnet": {"conv5_1": (-2.0, 2.0), "conv5_2": (0.0, 0.0, 0.0, 0.0)},
    "onet": {"conv6_1": (-2.0, 2.0), "conv6_2": (0.0, 0.0, 0.0, 0.0), "conv6_3": POINTS},
}
"""What MTCNN's last layers say of every picture, but for a little."""
Makers = Mapping[str, Callable[[], bytes]]
"""By role in `weights` of a domain's file."""


def write_files(
    domain: Domain, config: GeneratorConfig, folder: Path, *, roles: Container[str] | None = None
) -> dict[str, Path]:
    """Every file of a domain, for a generator of these sizes; what is there already stays.

    Args:
        domain: with its `weights`.
        config: of the generator.
        folder: where to.
        roles: the others are empty; None for all.

    Returns:
        The files by role.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {role: folder / file.file for role, file in domain.weights.items()}
    makers = _makers(config, paths, domain.content_box)
    for role, path in paths.items():
        if not path.exists():
            unfinished = path.with_name(f"{path.name}.unfinished")
            unfinished.write_bytes(makers[role]() if roles is None or role in roles else b"")
            unfinished.rename(path)
    return paths


def _makers(config: GeneratorConfig, paths: Mapping[str, Path], content_box: ContentBox | None) -> Makers:
    of = Published(config)
    side = config.resolution
    own = paths["lsap_e"].suffix == ".safetensors"
    return {
        "generator": of.pickled if paths["generator"].suffix == ".pkl" else lambda: as_torch(of.generator()),
        "psp": lambda: as_torch(of.encoder("psp_encoder", "GradualStyleEncoder", output_size=side)),
        "e4e": lambda: as_torch(of.encoder("e4e_encoder", "Encoder4Editing", stylegan_size=side)),
        "lsap_e": lambda: _own_encoder(paths["generator"], content_box) if own else as_torch(of.ganinverter()),
        "refiner e4e/hfgi": lambda: as_torch(of.hfgi()),
        "refiner lsap_e/hfgi": lambda: of.own_hfgi(
            load_generator(str(paths["generator"])).digest,
            load_encoder(str(paths["lsap_e"]), generator_config=config).digest,
        ),
        "refiner sam": lambda: as_torch(of.sam()),
        "refiner hyperstyle": lambda: as_torch(of.hyperstyle()),
        "refiner sfe": lambda: as_torch(of.sfe()),
        "direction pose": lambda: as_torch(direction(config, 1)),
        "direction smile": lambda: as_torch(direction(config, 2)),
        "direction age": lambda: as_torch(direction(config, 3)),
        "direction cars_pca": lambda: as_torch(components(config)),
        "lpips-vgg": lambda: as_torch(_trunk("lpips_vgg")),
        "lpips-alex": lambda: as_torch(_trunk("lpips_alex")),
        "curricularface": lambda: as_torch(filled(published("curricularface_ir101"))),
        "arcface": lambda: as_torch(filled(published("arcface_ir_se50"))),
        "moco": lambda: as_torch({"state_dict": filled(published("moco_resnet50"))}),
        "face parser": lambda: as_torch(filled(published("bisenet"))),
        "mtcnn pnet": lambda: _mtcnn("pnet"),
        "mtcnn rnet": lambda: _mtcnn("rnet"),
        "mtcnn onet": lambda: _mtcnn("onet"),
        "inception": lambda: as_torch(_inception()),
    }


def _own_encoder(generator: Path, content_box: ContentBox | None) -> bytes:
    """LSAP_E where none is released: as a training of this project leaves it."""
    loaded = load_generator(str(generator), content_box=content_box)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = Encoder(EncoderConfig.for_generator(loaded.config, heads="offsets", backbone="small"))
    encoder.w_avg.copy_(loaded.generator.mapping.w_avg)
    return encode_encoder(encoder, generator_digest=loaded.digest, title="LSAP_E")


def _trunk(table: str) -> dict[str, Tensor]:
    """torchvision's file; the linear layers of LPIPS are in the package that brings them."""
    return filled({name: shape for name, shape in published(table).items() if name.startswith("features.")})


def _mtcnn(net: str) -> bytes:
    """Weights that take what the first network proposes for faces, with five points that the picture moves a little."""
    tensors = filled(tables("mtcnn")[net])
    for layer, biases in ANSWERS.get(net, {}).items():
        tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"] * SLIGHTLY
        tensors[f"{layer}.bias"] = torch.tensor(biases)
    file = io.BytesIO()
    arrays: Any = {name: tensor.numpy() for name, tensor in tensors.items()}
    np.save(file, arrays)
    return file.getvalue()


def _inception() -> dict[str, Tensor]:
    """The names and shapes of torch-fidelity's own network; it cannot be made without a file, and reads none here."""

    class Unread(FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, *_: Any, **__: Any) -> None:
            pass

    with torch.device("meta"):
        network = Unread("inception-v3-compat", ["2048"], _empty())
    return filled({name: tuple(tensor.shape) for name, tensor in network.state_dict().items()})


def _empty() -> Any:
    return io.BytesIO(as_torch({}))
