"""The weights that a group of images shares, in a file of our own, and whose they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lsap_core.errors import CheckpointError, ConfigError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.refinement.network_files import NetworkCheckpoint, NetworkForm
from lsap_core.refinement.pti_shared import SharedPtiSettings, SharedWeights
from lsap_core.refinement.refined_by_pti import num_parameters

MOST_PARAMETERS = 2**40
GROUP = "group"
"""Among the options of a checkpoint."""


def _read_config(values: dict[str, Any]) -> GeneratorConfig:
    config = GeneratorConfig.from_dict(values)
    if num_parameters(config) > MOST_PARAMETERS:
        raise ConfigError(f"it has {num_parameters(config):,} parameters; wanted at most {MOST_PARAMETERS:,}")
    return config


SHARED_WEIGHTS = NetworkForm(SharedPtiSettings.kind, "shared weights of PTI", SharedWeights, _read_config)


@dataclass(frozen=True)
class Group:
    """The inversions that weights were tuned to.

    Attributes:
        method: name of the embedding.
        method_digest: of its configuration, as an archive has it.
        image_ids: which images.
    """

    method: str
    method_digest: str
    image_ids: tuple[str, ...]

    @classmethod
    def of(cls, checkpoint: NetworkCheckpoint[GeneratorConfig]) -> Group:
        """Whose weights a checkpoint has.

        Raises:
            CheckpointError: it does not say.
        """
        told = checkpoint.options.get(GROUP)
        values = dict(told) if isinstance(told, Mapping) else {}
        kinds = {"method": str, "method_digest": str, "image_ids": list}
        if {name: type(value) for name, value in values.items()} != kinds:
            raise CheckpointError(f"{SHARED_WEIGHTS.what} do not say whose they are: tune them again")
        return cls(values["method"], values["method_digest"], tuple(map(str, values["image_ids"])))


def options_of(group: Group, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a checkpoint that say whose its weights are."""
    return {**options, GROUP: {**asdict(group), "image_ids": list(group.image_ids)}}
