"""What a command did, counted in images, however many methods each of them was for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from lsap_archive import FAILED, OK


@dataclass(frozen=True)
class WorkedImages:
    """Images of some shards, each counted once.

    Attributes:
        num_all: all of them, duplicates too.
        num_ok: those that at least one method inverted.
        num_failed: those that at least one method failed at; an image may be among both.
    """

    num_all: int = 0
    num_ok: int = 0
    num_failed: int = 0


def worked_images(rows: pa.Table, shards: Collection[tuple[str, int]]) -> WorkedImages:
    """Count the images of shards.

    Args:
        rows: table in ROW_SCHEMA.
        shards: run and number of each.
    """
    wanted = pa.table(
        {
            "run_id": pa.array([run for run, _ in shards], pa.string()),
            "shard": pa.array([shard for _, shard in shards], pa.int64()),
        }
    )
    with duckdb.connect() as connection:
        connection.register("all_rows", rows.select(["image_id", "status", "run_id", "shard"]))
        connection.register("wanted", wanted)
        counts = connection.execute(
            "select count(distinct image_id), count(distinct image_id) filter (status = ?), "
            "count(distinct image_id) filter (status = ?) from all_rows semi join wanted using (run_id, shard)",
            [OK, FAILED],
        ).fetchone()
    assert counts is not None
    return WorkedImages(*counts)
