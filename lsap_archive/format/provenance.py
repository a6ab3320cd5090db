"""Where a result comes from: versions, time, digests. Travels in a run's plan and manifest."""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

from lsap_archive.format.documents import utc_now

_PACKAGES = ("numpy", "zarr", "pyarrow", "duckdb", "fsspec")


@dataclass(frozen=True)
class Provenance:
    """What made a result.

    Attributes:
        created: UTC time, ISO 8601.
        python: version of Python.
        platform: operating system and processor type, e.g. "Linux-x86_64".
        packages: version of each package; those that are not installed are left out.
        digests: digest of each thing the result depends on, e.g. {"generator": ..., "encoder": ...}.
        settings: anything else worth keeping, e.g. seeds.
    """

    created: str
    python: str
    platform: str
    packages: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def collect(
        cls,
        packages: Iterable[str] = (),
        *,
        digests: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Provenance:
        """The provenance of something made here and now.

        Args:
            packages: names of installed packages to note, beside those this package stands on.
            digests: name to digest.
            settings: JSON values.
        """
        return cls(
            created=utc_now(),
            python=platform.python_version(),
            platform=f"{platform.system()}-{platform.machine()}",
            packages=_versions({*_PACKAGES, *packages}),
            digests=dict(digests or {}),
            settings=dict(settings or {}),
        )

    def to_dict(self) -> dict[str, Any]:
        """The provenance as JSON values."""
        return asdict(self)


def _versions(names: Iterable[str]) -> dict[str, str]:
    found = {name: _version(name) for name in sorted(names)}
    return {name: version for name, version in found.items() if version is not None}


@functools.cache  # a file is read and parsed for each; those of a process stay what they were when it began
def _version(name: str) -> str | None:
    """None for an optional package that is not installed: it had no part in the result."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
