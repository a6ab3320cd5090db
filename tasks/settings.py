"""Where we are: what differs between a laptop and a cluster, read once from the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Places that belong to the machine, not to a run.

    Attributes:
        backbones: folder with the trunks of LPIPS (`LSAP_BACKBONES`), or None for torch's own cache.
        ray_address: Ray cluster to join (`LSAP_RAY_ADDRESS`), "local" to start one in this process.
    """

    backbones: Path | None = None
    ray_address: str = "local"

    @classmethod
    def from_environment(cls) -> Settings:
        """Read the `LSAP_*` variables."""
        backbones = os.environ.get("LSAP_BACKBONES")
        return cls(
            backbones=Path(backbones) if backbones else None,
            ray_address=os.environ.get("LSAP_RAY_ADDRESS", "local"),
        )
