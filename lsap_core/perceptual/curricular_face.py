"""The network that identity is reported with: CurricularFace's IR-101, which no training loss looks through."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsap_core.errors import CheckpointError
from lsap_core.images import as_rgb
from lsap_core.perceptual.face_alignment import FACE_SIDE, align_faces, similarity_transform
from lsap_core.perceptual.face_detection import FaceDetector, surest_points
from lsap_core.perceptual.ir_se import IR_101, IrSeTrunk
from lsap_core.perceptual.published_weights import describe_document, named_tensors, with_weights

EMBEDDING_DIM = 512
DROPOUT = 0.4
NUM_HALVINGS = 4


class CurricularFace(nn.Module):
    """IR-101 with its embedding head, trained by CurricularFace (Huang et al. 2020), 65.1 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        width = IR_101.widths[-1]
        self.trunk = IrSeTrunk(IR_101, in_channels=3)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.Dropout(DROPOUT),
            nn.Flatten(),
            nn.Linear(width * (FACE_SIDE >> NUM_HALVINGS) ** 2, EMBEDDING_DIM),
            nn.BatchNorm1d(EMBEDDING_DIM, affine=False),
        )

    def forward(self, faces: Tensor) -> Tensor:
        """Faces aligned by five points [N, 3, 112, 112] in [-1, 1] -> unit vectors [N, 512]."""
        return F.normalize(self.output_layer(self.trunk(faces)[-1]), dim=1)


class FaceIdentity(nn.Module):
    """Identity similarity of faces wherever they are: found, aligned by five points, embedded by CurricularFace.

    Of several faces in an image the one that the detector is surest of counts, as in the published protocol.
    """

    def __init__(self, detector: FaceDetector, network: CurricularFace):
        super().__init__()
        self.detector = detector.requires_grad_(False).eval()
        self.network = network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FaceIdentity:
        """The networks stay in eval mode."""
        self.training = mode
        return self

    def faces(self, images: Tensor, points: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The aligned face of each image that has one.

        Args:
            images: [N, C, H, W] in about [-1, 1].
            points: where the detector has found them before, `surest_points` of these images [N, 5, 2].

        Returns:
            faces [M, 3, 112, 112] in [-1, 1] in the order of their images, and which images they are of [N], bool.
        """
        seen = as_rgb(images)
        transforms = similarity_transform(surest_points(self.detector.detect(seen)) if points is None else points)
        is_found = transforms.isfinite().all(dim=(1, 2)).to(images.device)
        return align_faces(seen[is_found], transforms.to(images.device)[is_found]), is_found

    @torch.no_grad()
    def embed(self, images: Tensor, points: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Unit vectors of the faces in images, and where there is a face.

        Args:
            images: [N, C, H, W] in about [-1, 1].
            points: as `faces` takes them.

        Returns:
            embeddings [N, 512], NaN where no face was found, and which images have a face [N], bool.
        """
        faces, is_found = self.faces(images, points)
        embeddings = images.new_full((len(images), EMBEDDING_DIM), torch.nan)
        if len(faces):
            embeddings[is_found] = self.network(faces)
        return embeddings, is_found

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        """Cosine of the faces in images and in target, both [N, C, H, W] in [-1, 1]; sizes may differ.

        Returns:
            [N], higher is closer; NaN where one of the two shows no face.
        """
        return (self.embed(images)[0] * self.embed(target)[0]).sum(dim=1)


def build_curricular_face(state: object) -> CurricularFace:
    """CurricularFace with the weights of `CurricularFace_Backbone.pth`, frozen.

    Args:
        state: tensors by name (`input_layer.0.weight`, `body.0...`, `output_layer.3.weight`).

    Raises:
        CheckpointError: the weights are another network's.
    """
    tensors = named_tensors(state)
    if not {"input_layer.0.weight", "body.48.res_layer.1.weight", "output_layer.3.weight"} <= tensors.keys():
        raise CheckpointError(
            "wanted CurricularFace's IR-101 (input_layer, body.0 to body.48, output_layer); found "
            f"{describe_document(state)}: put CurricularFace_Backbone.pth in its place"
        )
    ours = {name if name.startswith("output_layer.") else f"trunk.{name}": value for name, value in tensors.items()}
    with torch.device("meta"):
        network = CurricularFace()
    return with_weights(network, ours, "CurricularFace (CurricularFace_Backbone.pth)").requires_grad_(False).eval()
