"""Provenance says what made a result and survives JSON."""

from __future__ import annotations

import json
import platform
from importlib import metadata

from lsap_archive import Provenance


def test_provenance_names_versions_and_digests() -> None:
    made = Provenance.collect(["fsspec", "no-such-package"], digests={"generator": "9f"}, settings={"seed": 3})
    assert made.python == platform.python_version()
    assert made.packages["zarr"] == metadata.version("zarr")
    assert made.packages["fsspec"] == metadata.version("fsspec")
    assert "no-such-package" not in made.packages
    assert made.digests == {"generator": "9f"} and made.settings == {"seed": 3}
    assert made.created.endswith("+00:00")


def test_provenance_survives_json() -> None:
    made = Provenance.collect(digests={"a": "b"})
    assert Provenance(**json.loads(json.dumps(made.to_dict()))) == made
