"""The networks that an evaluation looks with, by name: several of each kind, and none that has to be there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.network_files import load_network
from lsap_core.errors import ConfigError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.perceptual.features import FeatureNet
from lsap_core.perceptual.judge import JudgeNet
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

    def __init__(self, name: str, network: FeatureNet | JudgeNet):
        self.name = name
        self.network = network

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings [N, D] of images [N, C, R, R] in [-1, 1]; not normalized."""
        return self.network.features(images) if isinstance(self.network, JudgeNet) else self.network.embed(images)

    def probabilities(self, images: Tensor) -> Tensor:
        """Probability of each class, [N, classes], for images [N, C, R, R] in [-1, 1]."""
        logits: Tensor = self.network(images)
        return logits.softmax(dim=1)


class IdentityMeasure:
    """Identity similarity by any network that embeds: cosine of the embeddings.

    The network's `embed(images)` gives embeddings [N, D]; one that has to find a face first gives also where it did,
    [N] bool.
    """

    def __init__(self, network: Any):
        self.network = network

    @torch.no_grad()
    def __call__(self, images: Tensor, target: Tensor) -> Tensor:
        """Cosine of each image with its target, [N] in [-1, 1]; NaN where one of them shows no face."""
        embeddings, is_found = self._embed(images)
        targets, is_target_found = self._embed(target)
        return (embeddings * targets).sum(dim=1).where(is_found & is_target_found, torch.nan)

    def _embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        embedded = self.network.embed(images)
        if not isinstance(embedded, tuple):
            embedded = embedded, torch.ones(len(images), dtype=torch.bool, device=images.device)
        return F.normalize(embedded[0], dim=1), embedded[1]


def load_evaluation_networks(choice: EvaluationChoice, device: torch.device) -> dict[str, dict[str, Any]]:
    """Every network of a choice, frozen, by role and name: "lpips", "identity" and "judge".

    Raises:
        MissingWeightsError: a network is not on this machine.
        CheckpointError: a file holds something else.
    """
    return {
        "lpips": {name: load_perceptual(name, choice.published).to(device).eval() for name in choice.lpips},
        "identity": {name: _identity(name, choice.published, device) for name in choice.identity},
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
    return Judge(name, load_network(*EMBEDDED[name]).to(device))


def _identity(name: str, published: Published, device: torch.device) -> IdentityMeasure:
    if name in EMBEDDED:
        return IdentityMeasure(load_judge(name, device))
    network: nn.Module = load_identity(name, published)
    return IdentityMeasure(network.to(device).eval())
