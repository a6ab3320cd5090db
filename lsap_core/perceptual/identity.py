"""Whether two images show the same face (ArcFace) or the same thing (MoCo)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsap_core.errors import CheckpointError, ShapeError
from lsap_core.images import COMPARISON_SIDE, as_rgb, comparison_view
from lsap_core.perceptual.ir_se import IR_SE_50, IrSeTrunk
from lsap_core.perceptual.published_weights import describe_document, named_tensors, with_weights
from lsap_core.perceptual.resnet_50 import ResNet50Trunk

FACE_ROWS = slice(35, 223)
FACE_COLUMNS = slice(32, 220)
FACE_SIDE = 112
FACE_MAP_SIDE = 7
EMBEDDING_DIM = 512
DROPOUT = 0.6
MOCO_SIDE = 224
MOCO_PREFIX = "encoder_q."


class ArcFace(nn.Module):
    """IR-SE-50 with the embedding head of ArcFace (Deng et al. 2019), 43.8 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        width = IR_SE_50.widths[-1]
        self.trunk = IrSeTrunk(IR_SE_50, in_channels=3)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.Dropout(DROPOUT),
            nn.Flatten(),
            nn.Linear(width * FACE_MAP_SIDE**2, EMBEDDING_DIM),
            nn.BatchNorm1d(EMBEDDING_DIM),
        )

    def forward(self, faces: Tensor) -> Tensor:
        """Aligned faces [N, 3, 112, 112] in [-1, 1] -> unit vectors [N, 512]."""
        return F.normalize(self.output_layer(self.trunk(faces)[-1]), dim=1)


class ArcFaceSimilarity(nn.Module):
    """Identity similarity of aligned faces: cosine of their ArcFace embeddings, in [-1, 1]; higher is closer."""

    def __init__(self, network: ArcFace):
        super().__init__()
        self.network = network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> ArcFaceSimilarity:
        """The network stays in eval mode."""
        self.training = mode
        return self

    def faces(self, images: Tensor) -> Tensor:
        """What ArcFace sees of FFHQ-aligned images: rows 35-223, columns 32-220 of 256, pooled to 112 x 112.

        Raises:
            ShapeError: the images are not square, or smaller than 256 pixels.
        """
        height, width = images.shape[-2:]
        if images.ndim != 4 or height != width or height < COMPARISON_SIDE:
            raise ShapeError(
                f"images are {list(images.shape)}; ArcFace wants aligned faces [N, 3, {COMPARISON_SIDE}, "
                f"{COMPARISON_SIDE}] or larger squares: choose another identity network for other images"
            )
        face = as_rgb(comparison_view(images)[:, :, FACE_ROWS, FACE_COLUMNS])
        return F.adaptive_avg_pool2d(face, FACE_SIDE)

    def embed(self, images: Tensor) -> Tensor:
        """Unit vectors [N, 512] of aligned images [N, C, R, R] in [-1, 1], R at least 256."""
        embedding: Tensor = self.network(self.faces(images))
        return embedding

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        """Similarity of images [N, C, R, R] to target, the same shape, both in [-1, 1]: [N]."""
        return (self.embed(images) * self.embed(target)).sum(dim=1)


class MocoSimilarity(nn.Module):
    """Similarity of images of any kind: cosine of their MoCo v2 features (Chen et al. 2020), in [-1, 1].

    As pSp, e4e and LSAP use it: resized to 224 x 224 by taking nearest pixels, without ImageNet's normalization.
    """

    def __init__(self, network: ResNet50Trunk):
        super().__init__()
        self.network = network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> MocoSimilarity:
        """The network stays in eval mode."""
        self.training = mode
        return self

    def embed(self, images: Tensor) -> Tensor:
        """Unit vectors [N, 2048] of images [N, C, H, W] in [-1, 1]."""
        view = as_rgb(comparison_view(images))
        return F.normalize(self.network(F.interpolate(view, (MOCO_SIDE, MOCO_SIDE), mode="nearest")), dim=1)

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        """Similarity of images [N, C, H, W] to target, the same shape, both in [-1, 1]: [N]."""
        return (self.embed(images) * self.embed(target)).sum(dim=1)


def build_arcface(state: object) -> ArcFaceSimilarity:
    """ArcFace with the weights of `model_ir_se50.pth`.

    Args:
        state: tensors by name (`input_layer.0.weight`, `body.0...`, `output_layer.3.weight`).

    Raises:
        CheckpointError: the weights are another network's.
    """
    tensors = named_tensors(state)
    if not {"input_layer.0.weight", "output_layer.3.weight"} <= tensors.keys():
        raise CheckpointError(
            "wanted ArcFace with its head (input_layer, body and output_layer); found "
            f"{describe_document(state)}: put model_ir_se50.pth in its place"
        )
    ours = {name if name.startswith("output_layer.") else f"trunk.{name}": value for name, value in tensors.items()}
    with torch.device("meta"):
        network = ArcFace()
    return ArcFaceSimilarity(with_weights(network, ours, "ArcFace (model_ir_se50.pth)"))


def build_moco(document: object) -> MocoSimilarity:
    """The query encoder of a MoCo v2 checkpoint, `moco_v2_800ep_pretrain.pth` or `.pth.tar`.

    Args:
        document: what `read_torch` found in the file: `state_dict` with `module.encoder_q.*`. Its last layer
            (`fc`), the key encoder and the queue are left alone.

    Raises:
        CheckpointError: the file is another kind of checkpoint, or a tensor is missing or does not fit.
    """
    tensors = named_tensors(document.get("state_dict") if isinstance(document, Mapping) else None)
    ours = {
        name.removeprefix(MOCO_PREFIX): value
        for name, value in tensors.items()
        if name.startswith(MOCO_PREFIX) and not name.startswith(f"{MOCO_PREFIX}fc")
    }
    if not ours:
        raise CheckpointError(
            "wanted MoCo v2 (state_dict with module.encoder_q.*); found "
            f"{describe_document(document)}: put moco_v2_800ep_pretrain.pth in its place"
        )
    with torch.device("meta"):
        network = ResNet50Trunk()
    return MocoSimilarity(with_weights(network, ours, "MoCo v2 (moco_v2_800ep_pretrain.pth)"))
