"""What became of each method's images, and the means over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from lsap_archive import FAILED, OK
from tasks.reports.inversion.data import MethodInfo
from tasks.reports.statistics import Number, column_values, newest_rows, with_status

MEASURED = ("mse", "lpips", "lpips_judge", "identity_similarity", "sncd", "w_distance", "seconds", "final_loss")


@dataclass(frozen=True)
class MethodSummary:
    """What became of a method's images, and the means over those that are ok.

    Attributes:
        method: its name.
        num_ok: images with a code.
        num_failed: images with a reason instead.
        num_duplicate: images that share the code of another one; they enter no mean.
        num_steps: the largest number of steps taken, passes through the encoder included, or None.
        mse: in the range [-1, 1].
        lpips: by the network in the loss.
        lpips_judge: by the network that no method has seen.
        identity_similarity: cosine, higher is closer.
        sncd: to be read beside its references.
        w_distance: from the code to the mean code.
        seconds: wall time per image.
        final_loss: value of the objective at the last step; an encoder has none.
    """

    method: str
    num_ok: int
    num_failed: int
    num_duplicate: int
    num_steps: int | None
    mse: Number
    lpips: Number
    lpips_judge: Number
    identity_similarity: Number
    sncd: Number
    w_distance: Number
    seconds: Number
    final_loss: Number

    @property
    def num_images(self) -> int:
        """All images of the method."""
        return self.num_ok + self.num_failed + self.num_duplicate


def summarize_rows(rows: pa.Table, methods: Sequence[MethodInfo]) -> list[MethodSummary]:
    """Counts, means and standard errors of each method, in the order of `methods`."""
    summaries = []
    for method in methods:
        newest = newest_rows(rows, method.name)
        ok, num_failed = with_status(newest, OK), with_status(newest, FAILED).num_rows
        summaries.append(
            MethodSummary(
                method=method.name,
                num_ok=ok.num_rows,
                num_failed=num_failed,
                num_duplicate=newest.num_rows - ok.num_rows - num_failed,
                num_steps=pc.max(ok.column("num_steps")).as_py(),
                **{name: Number.of(column_values(ok, name)) for name in MEASURED},
            )
        )
    return summaries
