"""Networks of refiners in files of our own: what every kind of them has, whatever file they came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from lsap_core.generators.checkpoints.canonical import Shape
from lsap_core.generators.checkpoints.networks import (
    FORMAT_VERSION,
    canonical_network,
    check_digest,
    check_kind,
    config_of,
    from_json,
    network_digest,
    network_shapes,
    notes_of,
    to_json,
)
from lsap_core.perceptual.published_weights import with_weights


class Sizes(Protocol):
    """The configuration of a network."""

    def to_dict(self) -> dict[str, Any]:
        """The sizes as plain values, for JSON."""
        ...


Config = TypeVar("Config", bound=Sizes)
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class NetworkForm(Generic[Config, Network]):
    """One kind of networks in files of our own; tensors have the names of the network's state, without counters.

    Attributes:
        kind: what the metadata call it; digests begin with the line `lsap <kind> 1`.
        what: what sentences call it.
        make: the network of a configuration.
        read_config: a configuration from the values of `to_dict`, also after a round through JSON.
    """

    kind: str
    what: str
    make: Callable[[Config], Network]
    read_config: Callable[[dict[str, Any]], Config]

    def shapes(self, config: Config) -> dict[str, Shape]:
        """Name and shape of every tensor of a network but the counters of batches."""
        return network_shapes(lambda: self.make(config))

    def canonical(self, config: Config, state: Mapping[str, Any], *, what: str) -> dict[str, Tensor]:
        """The tensors of `config`, as `canonical_network` gives them.

        Raises:
            CheckpointError: a tensor is missing, unexpected, of another shape, or not a number somewhere.
        """
        return canonical_network(state, self.shapes(config), what=what)

    def digest(self, checkpoint: NetworkCheckpoint[Config]) -> str:
        """`network_digest` of sizes and numbers.

        Raises:
            CheckpointError: the state is not that of the configuration in float32.
        """
        config, state = checkpoint.config, checkpoint.state
        return network_digest(f"lsap {self.kind} 1", config.to_dict(), state, self.shapes(config), what=self.what)

    def build(self, checkpoint: NetworkCheckpoint[Config]) -> Network:
        """The network of a checkpoint: on the CPU, in eval mode, not frozen. Takes no random numbers."""
        with torch.device("meta"):
            network = self.make(checkpoint.config)
        return with_weights(network, checkpoint.state, self.what).eval()

    def read(self, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> NetworkCheckpoint[Config]:
        """A checkpoint from canonical tensors and the metadata that `metadata` wrote beside them.

        Raises:
            CheckpointError: the metadata describe something else, a tensor is missing, unexpected or of another shape,
                or the tensors are not those that the recorded digest was taken of.
        """
        check_kind(metadata, self.kind, what=self.what)
        config = config_of(metadata, self.read_config, what=self.what)
        checkpoint = NetworkCheckpoint(
            config,
            self.canonical(config, state, what="the file"),
            layout="safetensors",
            options=from_json(metadata.get("options", "{}"), dict, "options"),
            notes=notes_of(metadata),
            generator_digest=metadata.get("generator_digest") or None,
            encoder_digest=metadata.get("encoder_digest") or None,
            title=metadata.get("title", ""),
        )
        check_digest(metadata, self.digest(checkpoint), what=self.what)
        return checkpoint

    def metadata(self, checkpoint: NetworkCheckpoint[Config]) -> dict[str, str]:
        """What travels beside canonical tensors, as text: kind, version, sizes, options, notes, title, digests."""
        return {
            "kind": self.kind,
            "format_version": FORMAT_VERSION,
            "config": to_json(checkpoint.config.to_dict()),
            "options": to_json(checkpoint.options),
            "notes": to_json(list(checkpoint.notes)),
            "title": checkpoint.title,
            "generator_digest": checkpoint.generator_digest or "",
            "encoder_digest": checkpoint.encoder_digest or "",
            "digest": self.digest(checkpoint),
        }


@dataclass(frozen=True)
class NetworkCheckpoint(Generic[Config]):
    """Networks of one kind, whatever file they came from.

    Attributes:
        config: their sizes.
        state: tensors under the names of the network's state, counters of batches left out; float32, on the CPU.
        layout: "safetensors" for our own, or whose released file it was.
        options: what is known of the training, as plain values for JSON.
        notes: sentences about what else is in the file.
        generator_digest: digest of the generator that they were trained with; None when nobody recorded it.
        encoder_digest: digest of the encoder whose codes they were trained on; None likewise.
        title: what to call them in reports, or "".
    """

    config: Config
    state: dict[str, Tensor]
    layout: str
    options: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    generator_digest: str | None = None
    encoder_digest: str | None = None
    title: str = ""
