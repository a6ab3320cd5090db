"""Fréchet distance between images and their originals, by torchmetrics, from shards in any order."""

from __future__ import annotations

import functools
import hashlib
import io
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from lsap_core.errors import CheckpointError, ConfigError, MissingWeightsError
from lsap_core.generators.checkpoints import read_torch
from lsap_core.generators.config import GeneratorConfig
from lsap_core.images import as_rgb
from tasks.array_files import read_npz
from tasks.measuring.looks import Look, Looks
from tasks.measuring.networks import Judge, load_judge
from tasks.pictures.saved import saved_pixels
from tasks.weights.networks import EMBEDDED, check_network, digest_of_file, network_digest
from tasks.weights.published import Published

INCEPTION = "inception"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_FEATURES = 2048
COUNTS = ("fake_features_num_samples", "real_features_num_samples")
SUMS = ("fake_features_sum", "real_features_sum")
PRODUCTS = ("fake_features_cov_sum", "real_features_cov_sum")


class FrechetNetwork(nn.Module):
    """A feature network under a name: Inception-v3's pool3 as FID was published with, or a judge's embedding.

    Attributes:
        name: "inception" or a judge's.
        digest: of its weights.
        num_features: width of the features.
        look: name and digest of what it sees of a picture; a judge's is the embedding that identity is told by, too.
    """

    def __init__(self, name: str, digest: str, num_features: int, network: nn.Module | Judge | None):
        super().__init__()
        self.name = name
        self.digest = digest
        self.num_features = num_features
        self.network = network
        self.look = network.look if isinstance(network, Judge) else Look(f"features by {name}", digest)

    def forward(self, images: Tensor) -> Tensor:
        """Features [N, num_features] of images [N, C, h, w] in [-1, 1]; features pass through."""
        if images.ndim == 2:
            return images
        if isinstance(self.network, Judge):
            return self.network.embed(images)
        if self.network is None:
            raise ConfigError("these are the sums of a finished shard: load the network to add images")
        pixels = torch.from_numpy(saved_pixels(as_rgb(images))).permute(0, 3, 1, 2)
        features: Tensor = self.network(pixels.to(images.device))
        return features


def check_frechet(name: str, config: GeneratorConfig, published: Published) -> None:
    """Make sure that a feature network exists and fits the generator's images.

    Raises:
        ConfigError: no such network, or it looks at images of another size.
        MissingWeightsError: Inception's weights are not on this machine.
        CheckpointError: their file holds something else.
    """
    if name == INCEPTION:
        _check_content(published, digest_of_file(find_inception(published)))
    elif name in EMBEDDED:
        check_network(name, config, published)
    else:
        raise ConfigError(
            f'feature network "{name}" is not known; wanted one of {", ".join([INCEPTION, *EMBEDDED])}, or none'
        )


@functools.lru_cache
def _check_content(published: Published, digest: str) -> None:
    """Raise where a file does not hold Inception's weights; of the same digest once."""
    load_frechet(INCEPTION, published, torch.device("cpu"))


def find_inception(published: Published) -> Path:
    """The file of Inception-v3 as FID was published with.

    Raises:
        MissingWeightsError: it is not there; nothing is ever downloaded.
    """
    path = published.find(INCEPTION_FILE)
    if path is None:
        raise MissingWeightsError(
            f"FID needs torch-fidelity's {INCEPTION_FILE}, which is not in {published}; nothing is "
            "downloaded at run time: copy the file there, name its folder in the variable LSAP_BACKBONES, or choose a "
            "judge's features"
        )
    return path


def load_frechet(name: str, published: Published, device: torch.device) -> FrechetNetwork:
    """A feature network by name, "inception" or a judge's, on a device.

    Raises:
        ConfigError: no such network.
        MissingWeightsError: Inception's weights are not on this machine.
        CheckpointError: a file holds something else.
    """
    if name != INCEPTION:
        judge = load_judge(name, device)
        return FrechetNetwork(name, network_digest(name, published), judge.network.config.embedding_dim, judge)
    from torchmetrics.image.fid import NoTrainInceptionV3

    path = find_inception(published)
    data = path.read_bytes()
    try:
        # The library reads what it is given as a pickle that may run code. So it never sees the file, which another
        # could have changed since it was checked, but plain tensors as we have written them.
        rewritten: Any = io.BytesIO()
        torch.save(dict(read_torch(data)), rewritten)
        rewritten.seek(0)
        network = NoTrainInceptionV3("inception-v3-compat", [str(INCEPTION_FEATURES)], rewritten, antialias=False)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} does not hold the weights of torch-fidelity's Inception-v3: {reason}") from error
    return FrechetNetwork(name, hashlib.sha256(data).hexdigest()[:16], INCEPTION_FEATURES, network.to(device))


class FrechetState:
    """Sums over features of images and of their originals: |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of their normals.

    Heusel et al. 2017. Both sides as files that were read back at the same size (`read_back`). A state of Inception
    takes 34 MB, however many images it holds.

    Example: `merged = first.merge(second)`, in any order; `FrechetState.from_bytes(data)` has no network, which
    merging and `summary` do not need.
    """

    def __init__(self, network: FrechetNetwork):
        from torchmetrics.image.fid import FrechetInceptionDistance  # 3 s, which workers without a distance are spared

        self.network = network
        self.metric = FrechetInceptionDistance(network, antialias=False)

    @torch.no_grad()
    def update(self, images: Tensor, originals: Tensor) -> None:
        """Add images [N, C, h, w] and originals [M, C, h, w] in [-1, 1], as they were read back."""
        self.update_in(Looks(images), Looks(originals))

    @torch.no_grad()
    def update_in(self, looks: Looks, originals: Looks) -> None:
        """Add pictures and originals, as they were read back; what is known of them is not looked at again."""
        device = looks.pictures.device
        self.metric.to(device)
        for pictures, is_real in ((looks, False), (originals, True)):
            self.metric.update(pictures.of(self.network.look, self.network).to(device), real=is_real)

    def merge(self, other: FrechetState) -> FrechetState:
        """The state of both together.

        Raises:
            ConfigError: they were made with different networks.
        """
        ours, theirs = self.network, other.network
        if (ours.name, ours.digest) != (theirs.name, theirs.digest):
            raise ConfigError(
                f"features of {ours.name} ({ours.digest}) and of {theirs.name} ({theirs.digest}) cannot be added: "
                "evaluate both parts with one network"
            )
        values, others = self._state(), other._state()
        return _with_state(ours, {name: values[name] + others[name] for name in values})

    def to_bytes(self) -> bytes:
        """An .npz file of the sums; of the symmetric products the upper triangle."""
        rows, columns = np.triu_indices(self.network.num_features)
        arrays: dict[str, Any] = {name: value.cpu().numpy() for name, value in self._state().items()}
        arrays |= {name: arrays[name][rows, columns] for name in PRODUCTS}
        file = io.BytesIO()
        np.savez(file, network=np.asarray(self.network.name), digest=np.asarray(self.network.digest), **arrays)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> FrechetState:
        """A state without its network: to merge and to sum up.

        Raises:
            CheckpointError: the bytes are not those of a state.
        """
        try:
            file = read_npz(data)
            arrays = {name: file[name] for name in ("network", "digest", *COUNTS, *SUMS, *PRODUCTS)}
            width = len(arrays[SUMS[0]])
            state = {name: torch.from_numpy(arrays[name]) for name in (*COUNTS, *SUMS)}
            state |= {name: _symmetric(arrays[name], width) for name in PRODUCTS}
        except Exception as error:
            raise CheckpointError(f"not the state of a Fréchet distance: {error}; evaluate the shard again") from error
        return _with_state(FrechetNetwork(str(arrays["network"]), str(arrays["digest"]), width, None), state)

    def summary(self) -> dict[str, Any]:
        """The distance, and what it was computed from, as JSON values.

        Returns:
            name ("FID", or "FD [digits-judge]": other features are no FID), value (None with fewer than two images or
            originals), num_images, num_originals, num_features (with fewer images than features the covariance has
            not its full rank, and the value is large), network, digest.
        """
        images, originals = (int(self._state()[name]) for name in COUNTS)
        value = None
        if min(images, originals) >= 2:
            value = self._distance()
        return {
            "name": "FID" if self.network.name == INCEPTION else f"FD [{self.network.name}]",
            "value": value,
            "num_images": images,
            "num_originals": originals,
            "num_features": self.network.num_features,
            "network": self.network.name,
            "digest": self.network.digest,
        }

    def _distance(self) -> float:
        self.metric.orig_dtype = torch.float64  # what the result is rounded to
        with warnings.catch_warnings():
            # It counts calls of `update` and knows nothing of states that were merged into it.
            warnings.filterwarnings("ignore", message="The ``compute`` method", category=UserWarning)
            return float(self.metric.compute())

    def _state(self) -> dict[str, Tensor]:
        return {name: cast(Tensor, getattr(self.metric, name)).cpu() for name in (*COUNTS, *SUMS, *PRODUCTS)}


def added_up(states: Iterable[bytes]) -> FrechetState | None:
    """The state of all of them together, one in memory at a time; None where there is none.

    Raises:
        CheckpointError: bytes are not those of a state.
        ConfigError: they were made with different networks.
    """
    whole: FrechetState | None = None
    for data in states:
        one = FrechetState.from_bytes(data)
        whole = one if whole is None else whole.merge(one)
    return whole


def _with_state(network: FrechetNetwork, state: dict[str, Tensor]) -> FrechetState:
    made = FrechetState(network)
    made.metric.merge_state(state)
    return made


def _symmetric(triangle: np.ndarray, width: int) -> Tensor:
    if len(triangle) != width * (width + 1) // 2:
        raise ValueError(f"{len(triangle)} products of {width} features")
    upper = np.zeros((width, width))
    upper[np.triu_indices(width)] = triangle
    return torch.from_numpy(upper + np.triu(upper, 1).T)
