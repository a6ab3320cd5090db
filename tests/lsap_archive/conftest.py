"""Archives in three kinds of store, and runs small enough to read: K = 2, D = 3, five images, two a shard."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from lsap_archive import (
    ArchiveWriter,
    Geometry,
    PlannedRow,
    RunPlan,
    RunWriter,
    Store,
    code_arrays,
    noise_arrays,
    trace_arrays,
)

GEOMETRY = Geometry(num_ws=2, w_dim=3, noise_sides=(4, 8))
SECRET = "wJalrXUtnFEMI-very-secret"


@dataclass(frozen=True)
class Place:
    """A new, empty place for an archive."""

    url: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def store(self) -> Store:
        return Store.from_url(self.url, self.options)

    def writer(self) -> ArchiveWriter:
        return ArchiveWriter.open(
            self.url,
            generator_digest="9f86d081",
            generator_name="tiny",
            geometry=GEOMETRY,
            storage_options=self.options,
        )


@pytest.fixture(scope="session")
def s3_options(one_put_at_a_time: None) -> Iterator[dict[str, Any]]:
    """storage_options of an S3 server of our own, with a bucket named lsap."""
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"key": "AKIAEXAMPLE", "secret": SECRET, "endpoint_url": f"http://{host}:{port}"}
    fsspec.filesystem("s3", **options, use_listings_cache=False).makedirs("lsap", exist_ok=True)
    yield options
    server.stop()


@pytest.fixture
def local_place(tmp_path: Path) -> Place:
    return Place(str(tmp_path / "archive"))


@pytest.fixture
def s3_place(s3_options: dict[str, Any]) -> Place:
    return Place(f"s3://lsap/{uuid.uuid4().hex}/archive", s3_options)


@pytest.fixture
def memory_place() -> Place:
    return Place(f"memory://test-{uuid.uuid4().hex}")


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.object_store)])
def place(request: pytest.FixtureRequest) -> Place:
    """Each kind of store in turn."""
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


@pytest.fixture
def gcs_place(gcs_server: dict[str, Any]) -> Place:
    return Place(f"gs://lsap/{uuid.uuid4().hex}/archive", gcs_server)


@pytest.fixture
def azure_place(azure_server: dict[str, Any]) -> Place:
    return Place(f"az://lsap/{uuid.uuid4().hex}/archive", azure_server)


_CLOUDS = [pytest.param(cloud, marks=pytest.mark.object_store) for cloud in ("s3", "gcs", "azure")]


@pytest.fixture(params=["local", "memory", *_CLOUDS])
def every_place(request: pytest.FixtureRequest) -> Place:
    """As `place`, and the other clouds: for what their clients do in ways of their own."""
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


@pytest.fixture(params=["local", "memory"])
def quick_place(request: pytest.FixtureRequest) -> Place:
    """As `place`, for what no object store does in a way of its own."""
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


@dataclass
class Work:
    """Makes plans and results."""

    num_images: int = 5
    shard_rows: int = 2

    def plan(self, run_id: str = "run-1", **changes: Any) -> RunPlan:
        rows = tuple(
            PlannedRow(row, f"image-{row}", f"file:///images/{row}.png", f"content-{row}")
            for row in range(self.num_images)
        )
        values: dict[str, Any] = {
            "run_id": run_id,
            "method": "lsap_o",
            "method_digest": "4a44dc15",
            "config": {"num_steps": 20, "weights": (1.0, 0.5)},
            "provenance": {"seed": 7},
            "rows": rows,
            "shard_rows": self.shard_rows,
        }
        steps, terms = changes.pop("trace_steps", (0, 10)), changes.pop("trace_terms", ("mse", "lpips", "sncd"))
        noise = () if changes.get("subject") else noise_arrays(GEOMETRY)
        arrays = (*code_arrays(GEOMETRY), *noise, *trace_arrays(steps, terms))
        return RunPlan(**{**values, "arrays": arrays, **changes})

    def arrays(self, run: RunWriter, shard: int, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((seed, shard))
        shape = (len(run.rows_of(shard)),)
        return {
            name: rng.standard_normal(shape + array.item_shape).astype(np.float32) for name, array in run.arrays.items()
        }

    def rows(self, run: RunWriter, shard: int, seed: int = 0) -> pa.Table:
        size = len(run.rows_of(shard))
        return pa.table({"status": ["ok"] * size, "mse": [float(seed)] * size, "num_steps": [20] * size})

    def write(self, run: RunWriter, shard: int, seed: int = 0, attempt: str = "first") -> bool:
        return run.write_shard(shard, self.arrays(run, shard, seed), self.rows(run, shard, seed), attempt)

    def write_all(self, run: RunWriter, seed: int = 0) -> None:
        for shard in range(run.num_shards):
            assert self.write(run, shard, seed)

    def expected(self, run: RunWriter, name: str = "w_plus", seed: int = 0) -> np.ndarray:
        """Every value of an array, [N, ...]."""
        return np.concatenate([self.arrays(run, shard, seed)[name] for shard in range(run.num_shards)])


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def published(work: Work) -> Callable[[Place], RunWriter]:
    """Writes and publishes run-1 in a place."""

    def publish(place: Place) -> RunWriter:
        run = place.writer().start_run(work.plan())
        work.write_all(run)
        assert run.publish({"note": "test"})
        return run

    return publish
