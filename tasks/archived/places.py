"""Where the images of a source are now, looked up by id in bounded memory."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import duckdb
import pyarrow as pa

from tasks.sources.source import open_source
from tasks.stage import Shard

MEMORY_LIMIT = "256MB"  # of the database; what does not fit is on disk
LISTED_TOGETHER = 10_000


class Places:
    """The listing of a source in a temporary database, or no source at all."""

    def __init__(self, database: duckdb.DuckDBPyConnection | None) -> None:
        self._database = database

    def moved(self, images: pa.Table) -> dict[str, str | None]:
        """Where images are that lie elsewhere than a plan says, by id; None for those that are gone.

        Args:
            images: what a run was planned with, with image_id and uri.
        """
        if self._database is None:
            return {}
        self._database.register("planned", images.select(["image_id", "uri"]))
        return dict(
            self._database.sql(
                "select planned.image_id, listed.uri from planned left join listed using (image_id) "
                "where listed.uri is distinct from planned.uri"
            ).fetchall()
        )


def with_places(shard: Shard, image_ids: Sequence[str], moved: Mapping[str, str | None], shard_rows: int) -> Shard:
    """The shard with where its images are now.

    Args:
        shard: of a run.
        image_ids: of all images of the run.
        moved: as `Places.moved` gives it.
        shard_rows: rows of its shards.
    """
    start = shard.index * shard_rows
    members = image_ids[start : start + shard.num_images]
    return replace(shard, places={image_id: moved[image_id] for image_id in members if image_id in moved})


@contextlib.contextmanager
def known_places(spec: str | None) -> Iterator[Places]:
    """The places of a source's images, None for no source; the database is removed in the end.

    Raises:
        SourceError: the source cannot be listed.
    """
    if spec is None:
        yield Places(None)
        return
    with (
        tempfile.TemporaryDirectory(prefix="lsap-places-") as folder,
        duckdb.connect(f"{folder}/places.duckdb", config={"memory_limit": MEMORY_LIMIT}) as database,
        open_source(spec) as source,
    ):
        database.execute("create table listed (image_id varchar, uri varchar)")
        items = source.items()
        while together := list(itertools.islice(items, LISTED_TOGETHER)):
            columns = {"image_id": [item.image_id for item in together], "uri": [item.uri for item in together]}
            database.register("arrived", pa.table(columns, schema=_LISTED))
            database.execute("insert into listed select * from arrived")
        yield Places(database)


_LISTED = pa.schema([("image_id", pa.string()), ("uri", pa.string())])
