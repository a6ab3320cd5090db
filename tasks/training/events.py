"""Logged rows as a TensorBoard event file: the same numbers as in the Parquet tables, for those who watch there."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

NOT_CURVES = frozenset({"step", "time"})


def event_file(metrics: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]) -> bytes:
    """An event file with a curve for every column, "train/..." and "validation/..."."""
    with tempfile.TemporaryDirectory(prefix="lsap-events-") as folder:
        with SummaryWriter(folder) as writer:
            for group, rows in (("train", metrics), ("validation", validation)):
                for row in rows:
                    for name, value in row.items():
                        if name not in NOT_CURVES and value is not None:
                            writer.add_scalar(f"{group}/{name}", value, row["step"], walltime=row["time"])
        (path,) = Path(folder).iterdir()
        return path.read_bytes()
