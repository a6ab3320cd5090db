"""Networks by name, for the worker that needs them: generator, perceptual, identity, judge."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from domains.embedded import embedded_networks
from domains.network_files import load_network
from lsap_core.errors import CheckpointError, ConfigError, MissingWeightsError
from lsap_core.generators.checkpoints import read_torch
from lsap_core.generators.config import GeneratorConfig
from lsap_core.images import COMPARISON_SIDE
from lsap_core.perceptual.curricular_face import FaceIdentity
from lsap_core.perceptual.features import EmbeddingSimilarity, FeatureDistance, FeatureNet
from lsap_core.perceptual.identity import ArcFaceSimilarity, MocoSimilarity, build_arcface, build_moco
from lsap_core.perceptual.lpips import LpipsDistance, build_lpips
from tasks.weights.devices import place
from tasks.weights.faces import CURRICULAR_FACE_FILE, FACE_IDENTITY_FILES, find_face_files, load_face_identity
from tasks.weights.published import TORCH_CACHE, Published, sha256_of

# Names of the trunks in torch's cache, as torchvision writes them.
LPIPS_TRUNKS = {
    "lpips-vgg": "vgg16-397923af.pth",
    "lpips-alex": "alexnet-owt-7be5be79.pth",
    "lpips-squeeze": "squeezenet1_1-b8a52dc0.pth",
}
# Published networks of identity, by the names that their files are passed around with; the first is the usual one.
# CurricularFace finds the faces first, with the files of the face detector beside it.
IDENTITY_FILES = {
    "arcface": ("model_ir_se50.pth",),
    "moco": ("moco_v2_800ep_pretrain.pth", "moco_v2_800ep_pretrain.pth.tar"),
    "curricularface": (CURRICULAR_FACE_FILE,),
}
EMBEDDED = embedded_networks()

Identity = EmbeddingSimilarity | ArcFaceSimilarity | MocoSimilarity | FaceIdentity


@dataclass(frozen=True)
class NetworkChoice:
    """Which networks a run looks with, by name.

    Attributes:
        perceptual: of the loss.
        metric_perceptual: of the reported LPIPS.
        identity: of the identity similarity, or None.
        judge: in no loss, or None.
        published: where the LPIPS trunks and the published identity networks lie.
    """

    perceptual: str
    metric_perceptual: str
    identity: str | None = None
    judge: str | None = None
    published: Published = TORCH_CACHE

    def __post_init__(self) -> None:
        """Refuse names that nobody knows, and roles that a network cannot play."""
        for name in (self.perceptual, self.metric_perceptual):
            if name not in LPIPS_TRUNKS and name not in EMBEDDED:
                raise ConfigError(
                    f'perceptual network "{name}" is not known; wanted one of {", ".join([*LPIPS_TRUNKS, *EMBEDDED])}'
                )
        everywhere = [name for name in IDENTITY_FILES if name != "curricularface"]  # it has no value without a face
        identities = [*everywhere, *(name for name, (_, kind) in EMBEDDED.items() if kind is FeatureNet)]
        if self.identity is not None and self.identity not in identities:
            raise ConfigError(
                f'identity network "{self.identity}" is not known; wanted one of {", ".join(identities)} or none'
            )
        if self.judge is not None and self.judge not in EMBEDDED:
            raise ConfigError(f'judge "{self.judge}" is not known; wanted one of {", ".join(EMBEDDED)} or none')
        if self.judge is not None and self.judge == self.perceptual:
            raise ConfigError(f'"{self.judge}" is the network of the loss, so it cannot judge; name another or none')

    def check(self, config: GeneratorConfig) -> None:
        """Make sure before any work that every network exists and fits the generator's images.

        Raises:
            MissingWeightsError: a published network is not on this machine.
            CheckpointError: its file is another one than the published, or holds something else.
            ConfigError: a network looks at images of another size.
        """
        for name in dict.fromkeys((self.perceptual, self.metric_perceptual, self.identity, self.judge)):
            if name is not None:
                check_network(name, config, self.published)


@dataclass(frozen=True)
class Networks:
    """The networks of a choice, on a device."""

    perceptual: LpipsDistance | FeatureDistance
    metric_perceptual: LpipsDistance | FeatureDistance
    identity: Identity | None
    judge: FeatureDistance | None


def check_network(name: str, config: GeneratorConfig, published: Published) -> None:
    """Make sure that a network exists and fits the generator's images.

    Raises:
        MissingWeightsError: a published network is not on this machine.
        CheckpointError: its file is another one than the published, or holds something else.
        ConfigError: it looks at images of another size.
    """
    if name not in EMBEDDED:
        digest = network_digest(name, published)  # raises where it is not there, or another
        if name == "arcface" and (
            config.resolution < COMPARISON_SIDE or not config.is_square or config.content_box is not None
        ):
            box = "" if config.content_box is None else f" with the content box {config.content_box}"
            raise ConfigError(
                f"arcface looks at aligned faces of {COMPARISON_SIDE} px; the generator makes images of "
                f"{config.shown_size} px{box}: choose moco, or no identity network"
            )
        _check_content(name, published, digest)
        return
    sizes, (height, width) = load_network(*EMBEDDED[name]).config, config.content_size
    if (sizes.resolution, sizes.resolution, sizes.image_channels) != (height, width, config.image_channels):
        shown = f"{width} px" if height == width else f"{width}x{height} px"
        raise ConfigError(
            f"{name} looks at {sizes.image_channels}-channel images of {sizes.resolution} px; the generator "
            f"makes {config.image_channels}-channel images of {shown}: choose an lpips network"
        )


@functools.lru_cache
def _check_content(name: str, published: Published, digest: str) -> None:
    """Raise where a file does not hold the weights that its name promises; of the same digest once."""
    _ = load_perceptual(name, published) if name in LPIPS_TRUNKS else load_identity(name, published)


def load_networks(choice: NetworkChoice, device: torch.device) -> Networks:
    """Load every network of a choice, frozen.

    Raises:
        MissingWeightsError: a trunk is not on this machine.
        CheckpointError: a file holds something else.
    """
    perceptual = load_perceptual(choice.perceptual, choice.published)
    metric = (
        perceptual
        if choice.metric_perceptual == choice.perceptual
        else load_perceptual(choice.metric_perceptual, choice.published)
    )
    return Networks(
        place(perceptual, device),
        place(metric, device),
        None if choice.identity is None else place(load_identity(choice.identity, choice.published), device),
        None if choice.judge is None else place(FeatureDistance(load_network(*EMBEDDED[choice.judge])), device),
    )


def load_perceptual(name: str, published: Published) -> LpipsDistance | FeatureDistance:
    """A perceptual distance by name."""
    if name in EMBEDDED:
        return FeatureDistance(load_network(*EMBEDDED[name]))
    path = find_weights(name, published)
    try:
        with path.open("rb") as file:  # half a gigabyte, most of it the classifier: not twice in memory
            return build_lpips(name.removeprefix("lpips-"), read_torch(file))  # type: ignore[arg-type]
    except CheckpointError as error:
        raise CheckpointError(f"{path} is not a readable file of weights for {name}: {error}") from error


def load_identity(name: str, published: Published) -> Identity:
    """A network of identity by name, frozen.

    Raises:
        MissingWeightsError: it is not on this machine.
        CheckpointError: its file holds something else.
    """
    if name in EMBEDDED:
        return EmbeddingSimilarity(load_network(EMBEDDED[name][0], FeatureNet))
    if name == "curricularface":
        return load_face_identity(published)
    path = find_weights(name, published)
    try:
        with path.open("rb") as file:
            document = read_torch(file)
        return build_arcface(document) if name == "arcface" else build_moco(document)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def find_weights(name: str, published: Published) -> Path:
    """The file of a published network: the trunk of an LPIPS network, or a network of identity.

    Raises:
        MissingWeightsError: it is not there; nothing is ever downloaded.
    """
    if name == "curricularface":
        return find_face_files(published, FACE_IDENTITY_FILES, what=name)[-1]
    files = IDENTITY_FILES.get(name) or (LPIPS_TRUNKS[name],)
    for file in files:
        if path := published.find(file):
            return path
    origin = "torchvision's " if name in LPIPS_TRUNKS else ""
    raise MissingWeightsError(
        f"{name} needs {origin}{' or '.join(files)}, which is not in {published}; nothing is "
        "downloaded at run time: copy the file there, or name its folder in the variable LSAP_BACKBONES"
    )


def network_digest(name: str, published: Published) -> str:
    """SHA-256 of a network's weights as they lie on this machine, 16 hexadecimal digits."""
    if name == "curricularface":  # whose faces it embeds is up to the detector
        files = find_face_files(published, FACE_IDENTITY_FILES, what=name)
        return hashlib.sha256("".join(map(digest_of_file, files)).encode()).hexdigest()[:16]
    path = EMBEDDED[name][0] if name in EMBEDDED else find_weights(name, published)
    return digest_of_file(path)


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file, 16 hexadecimal digits."""
    return sha256_of(path)[:16]
