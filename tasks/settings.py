"""Where we are: what differs between a laptop and a cluster, read once from the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lsap_archive import ArchiveMismatchError, Store
from lsap_core.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    """Places that belong to the machine, not to a run.

    Attributes:
        backbones: path or URL of the folder of published networks (`LSAP_BACKBONES`), or None for torch's own cache.
        results: URL where flows keep their reports as JSON (`LSAP_RESULTS`), or None for nowhere.
        ray_address: Ray cluster to join (`LSAP_RAY_ADDRESS`), "local" to start one in this process.
        cache: folder for what this machine has found out (`LSAP_CACHE`), or None for the usual place of caches.
        ray_ship_code: whether this installation's packages travel to a joined cluster (`LSAP_RAY_SHIP_CODE=1`), whose
            nodes otherwise have to have them, as containers do.
        other_weights: whether published files are taken that have another hash than the known one
            (`LSAP_OTHER_WEIGHTS=1`), such as filled ones of a rehearsal.
    """

    backbones: str | None = None
    results: str | None = None
    ray_address: str = "local"
    cache: str | None = None
    ray_ship_code: bool = False
    other_weights: bool = False

    @property
    def cache_folder(self) -> Path:
        """Where this machine keeps what it has found out."""
        usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lsap"
        return Path(self.cache) if self.cache else usual

    @property
    def is_alone(self) -> bool:
        """Whether all work is done on this machine."""
        return self.ray_address == "local"

    @classmethod
    def from_environment(cls) -> Settings:
        """Read the `LSAP_*` variables.

        Raises:
            ConfigError: `LSAP_RESULTS` is no URL that results can be kept at, or carries a credential; the address of
                the Ray cluster may carry one, which logs would show.
        """
        if results := os.environ.get("LSAP_RESULTS"):
            try:
                Store.from_url(results)
            except ArchiveMismatchError as error:
                raise ConfigError(f"LSAP_RESULTS: {error}") from None
        ray_address = os.environ.get("LSAP_RAY_ADDRESS") or "local"
        _refuse_credential("LSAP_RAY_ADDRESS", ray_address)
        if ray_address == "auto":  # which is where Ray looks then
            _refuse_credential("RAY_ADDRESS", os.environ.get("RAY_ADDRESS", ""))
        return cls(
            backbones=os.environ.get("LSAP_BACKBONES") or None,
            results=results or None,
            ray_address=ray_address,
            cache=os.environ.get("LSAP_CACHE") or None,
            ray_ship_code=_is_set("LSAP_RAY_SHIP_CODE"),
            other_weights=_is_set("LSAP_OTHER_WEIGHTS"),
        )


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "0") not in ("", "0", "false")


def _refuse_credential(variable: str, address: str) -> None:
    """Ray takes no user and no query in an address, so nothing of one that has them is shown."""
    if "@" in address or "?" in address:
        raise ConfigError(
            f"{variable} has a user or a query, which may be a password and would be shown in logs; wanted host:port, "
            "and the cluster's token in RAY_AUTH_TOKEN"
        )
