"""Is an image there twice? Asked of every row of an archive, in bounded memory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import duckdb
import pyarrow as pa

from lsap_archive.format.manifest import Manifest
from lsap_archive.format.rows import HOW_FITTED, IS_SETTLED

_MEMORY_LIMIT = "256MB"
_TWICE = """
    with suspects as (
        select method_digest, image_id from noted group by all having count(*) > 1),
    followed as (
        select image_id, digest, status, fitted, run_id, is_settled, lag(digest) over ordered as digest_before,
            lag(is_settled) over ordered as was_settled, lag(status) over ordered as status_before,
            lag(fitted) over ordered as fitted_before, lag(run_id) over ordered as run_before
        from noted join suspects using (method_digest, image_id) join runs using (run_id)
        window ordered as (partition by method_digest, image_id order by place))
    select image_id, digest, run_id, run_before, status, status <> 'failed' and status_before <> 'failed' from followed
    where digest = digest_before and was_settled and fitted = fitted_before
    order by run_id, image_id
"""


class Twice(NamedTuple):
    """A row that says once more what an older run says of the same image.

    Attributes:
        image_id: the image.
        digest: of its content.
        run_id: the newer run.
        run_before: the older one.
        status: of the newer row.
        is_result: whether both have a result.
    """

    image_id: str
    digest: str
    run_id: str
    run_before: str
    status: str
    is_result: bool


class RowLedger:
    """Every row's method, image, content and status: in a database that moves to a temporary folder when it grows."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="lsap-verify-")
        self._database = duckdb.connect(
            str(Path(self._folder.name) / "rows.duckdb"), config={"memory_limit": _MEMORY_LIMIT, "threads": 1}
        )
        self._database.execute("create table runs (run_id text, place integer)")
        columns = "run_id text, method_digest text, image_id text, digest text, status text"
        self._database.execute(f"create table noted ({columns}, is_settled boolean, fitted text)")

    def __enter__(self) -> RowLedger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()
        self._folder.cleanup()

    def add(self, manifest: Manifest, rows: pa.Table) -> None:
        """Note the rows of a shard."""
        rows = rows.select(["image_id", "digest", "status", "reason", "altered"])
        self._database.register("shard", rows)
        self._database.execute(
            f"insert into noted select ?, ?, image_id, digest, status, {IS_SETTLED}, {HOW_FITTED} from shard",
            [manifest.run_id, manifest.method_digest],
        )
        self._database.unregister("shard")

    def twice(self, manifests: list[Manifest]) -> list[Twice]:
        """What was inverted again although its content had not changed and the older run says something of it.

        An image that was fitted in another way is another one to the method, though its file is the same.

        Args:
            manifests: the runs, the oldest first.
        """
        if not manifests:
            return []
        places = [(manifest.run_id, place) for place, manifest in enumerate(manifests)]
        self._database.executemany("insert into runs values (?, ?)", places)
        return [Twice(*row) for row in self._database.execute(_TWICE).fetchall()]
