"""What an archive holds, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lsap_archive.format.documents import decode_document
from lsap_archive.format.layout import ARCHIVE_KEY, Geometry, noise_name
from lsap_archive.format.manifest import Manifest
from lsap_archive.format.rows import STATUSES
from lsap_archive.reading.measured import Measured
from lsap_archive.reading.previews import preview_bytes
from lsap_archive.reading.published_runs import PublishedRuns


def holdings(
    runs: PublishedRuns, measured: Measured, generator: Mapping[str, str], geometry: Geometry
) -> dict[str, Any]:
    """What `Archive.describe` tells, as JSON values.

    Args:
        runs: of the archive.
        measured: its evaluations.
        generator: as its header says.
        geometry: likewise.
    """
    methods: dict[str, dict[str, Any]] = {}
    edits: dict[str, dict[str, Any]] = {}
    counts = runs.counts()
    for manifest, by_status in zip(runs.manifests, counts, strict=True):
        of_kind = edits if manifest.is_edit else methods
        about = of_kind.setdefault(manifest.method, {"runs": 0, **dict.fromkeys(STATUSES, 0)})
        _add_run(about, manifest, by_status)
    return {
        "url": runs.url,
        "format_version": decode_document(runs.store.get(ARCHIVE_KEY), ARCHIVE_KEY)["format_version"],
        "generator": dict(generator),
        "geometry": geometry.to_dict(),
        "num_runs": len(runs.manifests),
        "num_rows": sum(sum(by_status.values()) for by_status in counts),
        "num_bytes": sum(manifest.num_bytes for manifest in runs.manifests),
        "methods": {name: methods[name] for name in sorted(methods)},
        "edits": {name: edits[name] for name in sorted(edits)},
        "num_evaluations": len(measured.published),
        "set_numbers": [
            {name: row[name] for name in ("method", "measure", "by", "value", "num_images", "problem")}
            for row in measured.set_numbers().to_pylist()
        ],
    }


def _add_run(about: dict[str, Any], manifest: Manifest, by_status: Mapping[str, int]) -> None:
    """Adds a run to what is told about its method."""
    about["runs"] += 1
    about["num_bytes"] = about.get("num_bytes", 0) + manifest.num_bytes
    about["preview_bytes"] = about.get("preview_bytes", 0) + preview_bytes(manifest)
    if manifest.subject is None:
        about["noise"] = sorted({*about.get("noise", ()), _noise_of(manifest)})
    for status, number in by_status.items():
        about[status] += number
    if "fit" in manifest.config:
        about["fits"] = sorted({*about.get("fits", ()), manifest.config["fit"]})


def _noise_of(manifest: Manifest) -> str:
    kept = {array.name: array.dtype for array in manifest.arrays}
    first = noise_name(0)  # versions before 4 declared maps that encoders never kept
    is_kept = any(file.name.startswith(f"{first}/c/") for file in manifest.files)
    return kept[first] if is_kept else "constant"
