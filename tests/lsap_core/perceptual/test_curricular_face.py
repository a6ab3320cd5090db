"""CurricularFace beside the published script, and identity where a face is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lsap_core.errors import CheckpointError
from lsap_core.images import from_uint8
from lsap_core.perceptual.curricular_face import CurricularFace, FaceIdentity, build_curricular_face
from lsap_core.perceptual.face_alignment import REFERENCE_POINTS
from lsap_core.perceptual.face_detection import Faces

NUM_PARAMETERS = 65_128_768


@pytest.fixture(scope="module")
def state(filled: Callable[..., dict[str, Tensor]]) -> dict[str, Tensor]:
    return filled("curricularface_ir101", "plain")


@pytest.fixture(scope="module")
def network(state: dict[str, Tensor]) -> CurricularFace:
    return build_curricular_face(state)


def test_embeddings_and_scores_are_the_published_ones(network: CurricularFace, reference: Callable[[str], Any]) -> None:
    numbers = reference("metric_id")
    with torch.no_grad():
        result, truth = (network(from_uint8(numbers[name].numpy())) for name in ("result", "gt"))
    numbers.check("embedding_result", result)
    numbers.check("embedding_gt", truth)
    scores = (result * truth).sum(dim=1)
    numbers.check("scores", scores)
    numbers.check("mean_std", torch.stack([scores.mean(), scores.std(correction=0)]))


def test_the_network_has_the_published_size_and_stays_as_it_is(network: CurricularFace) -> None:
    assert sum(parameter.numel() for parameter in network.parameters()) == NUM_PARAMETERS
    assert not any(parameter.requires_grad for parameter in network.parameters())
    identity = FaceIdentity(FaceWhereBright(), network)  # type: ignore[arg-type]
    identity.train()
    assert not network.training


class FaceWhereBright(torch.nn.Module):
    """Plays the detector: in a picture with any light, the face lies as the reference does."""

    def detect(self, images: Tensor) -> list[Faces]:
        points = torch.tensor(REFERENCE_POINTS, dtype=torch.float64)
        return [
            Faces(torch.zeros(int(found), 5), points.expand(int(found), 5, 2))
            for found in (images > -1).any(dim=(1, 2, 3))
        ]


def test_identity_is_missing_where_a_face_is(network: CurricularFace, reference: Callable[[str], Any]) -> None:
    numbers = reference("metric_id")
    result, truth = (from_uint8(numbers[name].numpy()) for name in ("result", "gt"))
    black = torch.full_like(result[:1], -1)
    identity = FaceIdentity(FaceWhereBright(), network)  # type: ignore[arg-type]
    embeddings, is_found = identity.embed(torch.cat([result[:1], black, result[1:]]))
    assert is_found.tolist() == [True, False, True]
    assert embeddings[1].isnan().all()
    # Points that lie on the reference leave the picture as it is, so the published numbers hold.
    numbers.check("embedding_result", embeddings[is_found])
    similarity = identity(torch.cat([result, black, result[:1]]), torch.cat([truth, truth[:1], black]))
    numbers.check("scores", similarity[:2])
    assert similarity[2:].isnan().all()


def test_a_batch_without_any_face(network: CurricularFace) -> None:
    identity = FaceIdentity(FaceWhereBright(), network)  # type: ignore[arg-type]
    embeddings, is_found = identity.embed(torch.full((2, 1, 40, 40), -1.0))
    assert embeddings.shape == (2, 512) and embeddings.isnan().all() and not is_found.any()


def test_other_files_are_refused_by_what_they_are(state: dict[str, Tensor]) -> None:
    arcface = {"input_layer.0.weight": 0, "body.0.res_layer.1.weight": 0, "output_layer.3.weight": 0}
    with pytest.raises(CheckpointError, match=r"wanted CurricularFace.*found a face recognition network.*put Curric"):
        build_curricular_face(arcface)
    with pytest.raises(CheckpointError, match="found a single list"):
        build_curricular_face([1])
    with pytest.raises(CheckpointError, match=r"CurricularFace.*1 tensors differ[^$]*trunk\.body\.7\.res_layer\.1"):
        build_curricular_face({name: t for name, t in state.items() if name != "body.7.res_layer.1.weight"})
