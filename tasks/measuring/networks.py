"""The networks that an evaluation looks with, by name: several of each kind, and none that has to be there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.network_files import load_network
from lsap_core.errors import ConfigError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.perceptual.curricular_face import FaceIdentity
from lsap_core.perceptual.features import FeatureNet
from lsap_core.perceptual.judge import JudgeNet
from tasks.measuring.face_points import FacePoints
from tasks.measuring.looks import Look, Looks
from tasks.weights.devices import place
from tasks.weights.networks import (
    EMBEDDED,
    IDENTITY_FILES,
    LPIPS_TRUNKS,
    check_network,
    load_identity,
    load_perceptual,
    network_digest,
)
from tasks.weights.published import TORCH_CACHE, Published


@dataclass(frozen=True)
class EvaluationChoice:
    """Which networks an evaluation looks with, by name.

    Attributes:
        lpips: perceptual distances.
        identity: networks of identity: "curricularface" finds and aligns faces, "arcface" wants them aligned, "moco"
            takes anything, and the embedding of a small network ("digits-judge") what it was trained on.
        judge: tells classes apart and embeds, or None.
        published: where published networks lie.
    """

    lpips: tuple[str, ...] = ()
    identity: tuple[str, ...] = ()
    judge: str | None = None
    published: Published = TORCH_CACHE

    def __post_init__(self) -> None:
        """Refuse names that nobody knows."""
        for role, names, known in (
            ("lpips", self.lpips, (*LPIPS_TRUNKS, *EMBEDDED)),
            ("identity", self.identity, (*IDENTITY_FILES, *EMBEDDED)),
            ("judge", () if self.judge is None else (self.judge,), tuple(EMBEDDED)),
        ):
            if unknown := [name for name in names if name not in known]:
                raise ConfigError(f'{role} "{unknown[0]}" is not known; wanted some of {", ".join(known)}, or none')
            if len(set(names)) < len(names):
                raise ConfigError(f"{role} is {', '.join(names)}; wanted every network once")

    @property
    def names(self) -> tuple[str, ...]:
        """Every network once."""
        judges = () if self.judge is None else (self.judge,)
        return tuple(dict.fromkeys((*self.lpips, *self.identity, *judges)))

    def check(self, config: GeneratorConfig) -> None:
        """Make sure before any work that every network exists and fits the generator's images.

        Raises:
            MissingWeightsError: a published network is not on this machine.
            ConfigError: a network looks at images of another size.
        """
        for name in self.names:
            check_network(name, config, self.published)

    def digests(self) -> dict[str, str]:
        """SHA-256 of every network's weights by name, 16 digits: what an evaluation's numbers depend on."""
        return {name: network_digest(name, self.published) for name in self.names}


class Judge:
    """A small network that tells classes apart, and whose embedding says what is near to what."""

    def __init__(self, name: str, network: FeatureNet | JudgeNet, digest: str | None = None):
        """With the digest of its weights, where what it sees is to be kept."""
        self.name = name
        self.network = network
        self.look = embedding_of(name, digest)
        self._classes = Look(f"class by {name}", digest)

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings [N, D] of images [N, C, R, R] in [-1, 1]; not normalized."""
        return self.network.features(images) if isinstance(self.network, JudgeNet) else self.network.embed(images)

    def probabilities(self, images: Tensor) -> Tensor:
        """Probability of each class, [N, classes], for images [N, C, R, R] in [-1, 1]."""
        logits: Tensor = self.network(images)
        return logits.softmax(dim=1)

    def classes_in(self, looks: Looks) -> Tensor:
        """Probability of each class, [N, classes], for pictures."""
        return looks.of(self._classes, self.probabilities).to(looks.pictures.device)


class IdentityMeasure:
    """Identity similarity by any network that embeds: cosine of the embeddings.

    The network's `embed(images)` gives embeddings [N, D]; one that has to find a face first gives also where it did,
    [N] bool.
    """

    def __init__(self, network: Any, look: Look | None = None, points: FacePoints | None = None):
        """By a network.

        Args:
            network: embeds images.
            look: name and digest of its embeddings; they are not kept by default.
            points: finds the faces that it embeds; it finds them itself by default, if it has to.
        """
        self.network = network
        self._look = look or Look(f"embedding {id(network)}")
        self._points = points

    def __call__(self, images: Tensor, target: Tensor) -> Tensor:
        """Cosine of each image with its target, [N] in [-1, 1]; NaN where one of them shows no face."""
        return self.similarity(Looks(images), Looks(target))

    @torch.no_grad()
    def similarity(self, looks: Looks, target: Looks) -> Tensor:
        """Cosine of each picture with its target, [N] in [-1, 1]; NaN where one of them shows no face."""
        return (self._embedded(looks) * self._embedded(target)).sum(dim=1)

    def _embedded(self, looks: Looks) -> Tensor:
        """Unit vectors [N, D], NaN without a face."""
        seen = looks.of(self._look, lambda pictures: self._embed(pictures, looks))
        return F.normalize(seen.to(looks.pictures.device), dim=1)

    def _embed(self, pictures: Tensor, looks: Looks) -> Tensor:
        if self._points is None:
            embedded = self.network.embed(pictures)
        else:
            embedded = self.network.embed(pictures, self._points.find_in(looks))
        if not isinstance(embedded, tuple):
            return cast(Tensor, embedded)
        return cast(Tensor, embedded[0].where(embedded[1][:, None], torch.nan))


def embedding_of(name: str, digest: str | None) -> Look:
    """What a network sees of pictures, whatever it is compared for."""
    return Look(f"embedding by {name}", digest)


def load_evaluation_networks(
    choice: EvaluationChoice, device: torch.device, points: FacePoints | None = None
) -> dict[str, dict[str, Any]]:
    """Every network of a choice, frozen, by role and name: "lpips", "identity" and "judge".

    Args:
        choice: which.
        device: where they go.
        points: of faces, on that device, where somebody has loaded their detector already.

    Raises:
        MissingWeightsError: a network is not on this machine.
        CheckpointError: a file holds something else.
    """
    return {
        "lpips": {name: place(load_perceptual(name, choice.published), device).eval() for name in choice.lpips},
        "identity": {name: _identity(name, choice.published, device, points) for name in choice.identity},
        "judge": {} if choice.judge is None else {choice.judge: load_judge(choice.judge, device)},
    }


def load_judge(name: str, device: torch.device) -> Judge:
    """A judge by name, on a device.

    Raises:
        ConfigError: no such judge.
        CheckpointError: its file holds something else.
    """
    if name not in EMBEDDED:
        raise ConfigError(f'judge "{name}" is not known; wanted one of {", ".join(EMBEDDED)}')
    return Judge(name, place(load_network(*EMBEDDED[name]), device), network_digest(name, TORCH_CACHE))


def _identity(name: str, published: Published, device: torch.device, points: FacePoints | None) -> IdentityMeasure:
    if name in EMBEDDED:
        judge = load_judge(name, device)
        return IdentityMeasure(judge, judge.look)
    look = embedding_of(name, network_digest(name, published))
    network: nn.Module = place(load_identity(name, published), device).eval()
    if isinstance(network, FaceIdentity):
        return IdentityMeasure(network, look, points or FacePoints.load(published, device))
    return IdentityMeasure(network, look)
