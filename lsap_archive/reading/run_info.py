"""What is told of a published run, and of how its images came about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsap_archive.format.subject import Subject


@dataclass(frozen=True)
class RunInfo:
    """A published run.

    Attributes:
        run_id: its name.
        method: published name of the method.
        method_digest: digest of everything that decides its results.
        created: UTC time of publication by the clock of whoever published it, ISO 8601.
        order: sorts runs, the newest last.
        num_rows: images in it.
        num_bytes: of all that is stored of it.
        rows_by_status: number of rows of each status, those of retired shards included.
        config: the configuration.
        provenance: versions, digests, seeds.
        summary: what the flow had to say.
        subject: of a refinement or an edit, what it is made of; None for an inversion.
    """

    run_id: str
    method: str
    method_digest: str
    created: str
    order: tuple[int, str, str]
    num_rows: int
    num_bytes: int
    rows_by_status: dict[str, int]
    config: dict[str, Any]
    provenance: dict[str, Any]
    summary: dict[str, Any]
    subject: Subject | None


@dataclass(frozen=True)
class Trace:
    """Objective terms along the optimization.

    Attributes:
        values: [N, steps, terms], float32; NaN where a step was not reached.
        steps: the steps, counted from 0.
        terms: names of the terms.
    """

    values: NDArray[np.float32]
    steps: tuple[int, ...]
    terms: tuple[str, ...]
