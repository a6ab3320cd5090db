"""An archive that can be looked at: handwritten digits, principal components of them as codes, kept previews."""

from __future__ import annotations

import io
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import uvicorn
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

from domains.digits.data import load_split
from lsap_archive import (
    Archive,
    ArchiveKeyError,
    ArchiveWriter,
    EvaluationPlan,
    Geometry,
    LiveDirection,
    PlannedRow,
    Preview,
    RunPlan,
    StyleLayers,
    Subject,
    code_arrays,
    open_archive,
)
from lsap_archive.explorer.app import explorer_app

NUM_IMAGES = 600
GEOMETRY = Geometry(num_ws=2, w_dim=20, noise_sides=())
HOSTILE = "<img src=x onerror='window.harmed=1'>\u202e'\";--"
FAILED, COPY, UNSEEN = 5, 7, 11
"""Rows of an image that failed, of a copy of the image before it, and of one without a preview."""


def webp(pixels: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "webp", lossless=True, method=0)
    return file.getvalue()


@dataclass(frozen=True)
class Digits:
    """Digits and their principal components."""

    ids: list[str]
    images: NDArray[np.float64]  # [N, 32, 32]
    codes: NDArray[np.float64]  # [N, 40]
    mean: NDArray[np.float64]
    components: NDArray[np.float64]  # [40, 1024]

    @classmethod
    def of_test_split(cls) -> Digits:
        split = load_split("test")
        pixels = split.images[:NUM_IMAGES].reshape(NUM_IMAGES, -1).astype(np.float64)
        mean = pixels.mean(axis=0)
        _, vectors = np.linalg.eigh(np.cov(pixels - mean, rowvar=False))
        components = vectors.T[::-1][:40]
        return cls(split.ids[:NUM_IMAGES], pixels.reshape(-1, 32, 32), (pixels - mean) @ components.T, mean, components)

    def made(self, codes: NDArray[np.float64]) -> NDArray[np.float64]:
        return (self.mean + codes @ self.components).reshape(-1, 32, 32)

    def without(self, first: int) -> NDArray[np.float64]:
        """Codes of which only the first components are kept."""
        return np.where(np.arange(40) < first, self.codes, 0.0)


def slanted(images: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([[np.roll(line, (16 - y) // 3) for y, line in enumerate(image)] for image in images])


def write_run(
    writer: ArchiveWriter,
    digits: Digits,
    method: str,
    made: NDArray[np.float64],
    codes: NDArray[np.float64],
    **more: Any,
) -> None:
    """A run of all digits, whose measures are those of `made`."""
    images = tuple(
        PlannedRow(row, name, f"/digits/{row}.png", f"content-{row - (row == COPY)}")
        for row, name in enumerate(digits.ids)
    )
    run_id = method.replace("/", "-")
    plan = RunPlan(run_id, method, f"digest-{run_id}", {}, {}, images, code_arrays(GEOMETRY), shard_rows=256, **more)
    run = writer.start_run(plan)
    mse = ((made - digits.images) ** 2).mean(axis=(1, 2)) / 127.5**2
    for shard in range(run.num_shards):
        rows = np.array(run.rows_of(shard))
        status = np.where(rows == FAILED, "failed", np.where(rows == COPY, "duplicate", "ok"))
        is_ok = status == "ok"
        table = pa.table(
            {
                "status": status,
                "reason": [None if one != "failed" else "non_finite_loss" for one in status],
                "message": [None if one != "failed" else f"the loss was no number {HOSTILE}" for one in status],
                "duplicate_of": [None if one != "duplicate" else digits.ids[COPY - 1] for one in status],
                "mse": np.where(is_ok, mse[rows], None),
                "identity_similarity": np.where(is_ok, 1 - mse[rows] / 2, None),
                "sncd": np.where(is_ok, 0.05 + np.abs(codes[rows]).mean(axis=1) / 2e3, None),
            }
        )
        if "subject" in more and more["subject"].is_edit:
            table = table.select(["status", "reason", "message", "duplicate_of"])
        previews = [
            Preview(int(row), webp(made[row]), None if "subject" in more else webp(digits.images[row]))
            for row in rows[is_ok]
            if row != UNSEEN
        ]
        of_shard = {"w_plus": codes[rows].reshape(-1, 2, 20).astype(np.float32)}
        assert run.write_shard(shard, of_shard, table, "first", previews=previews)
    assert run.publish({})


def write_archive(url: str) -> None:
    """Two inversions, a refinement and an edit of 600 digits, and an evaluation of the edit."""
    digits = Digits.of_test_split()
    writer = ArchiveWriter.open(url, generator_digest="9f86", generator_name="components", geometry=GEOMETRY)
    few, many = digits.without(12), digits.without(40)
    write_run(writer, digits, "lsap_e", digits.made(few), few)
    write_run(writer, digits, "lsap_o_w_plus", digits.made(many), many)
    rng = np.random.default_rng(0)
    weights = tuple(rng.standard_normal((width, 20)).astype(np.float32) for width in (8, 4))
    biases = tuple(np.zeros(width, np.float32) for width in (8, 4))
    assert writer.put_style_layers(StyleLayers("9f86", weights, biases))
    of = {"run_id": "lsap_e", "method": "lsap_e", "method_digest": "digest-lsap_e"}
    refined = Subject(**of, edit=None, strength=None, refiner="hfgi")
    write_run(writer, digits, "lsap_e/hfgi", digits.made(few) * 0.4 + digits.made(many) * 0.6, few, subject=refined)
    edited = Subject(**of, edit="slant", strength=2.0)
    write_run(writer, digits, "lsap_e/slant", slanted(digits.made(few)), few + 10, subject=edited)
    plan = EvaluationPlan("evaluation-1", {"run_id": "lsap_e-slant"}, "lsap_e/slant", "slant", 2.0, {}, {}, 600, 600)
    evaluation = writer.start_evaluation(plan)
    numbers = {"row": list(range(600)), "image_id": digits.ids, "value": np.linspace(0.2, 0.8, 600)}
    tables = [
        pa.table({**numbers, "measure": ["identity"] * 600, "by": [by] * 600, "problem": pa.nulls(600, pa.string())})
        for by in ("faces", "Faces")
    ]
    assert evaluation.write_shard(0, pa.concat_tables(tables)) and evaluation.publish({})


class Slanting:
    """A renderer that needs no generator: digits moved to the side."""

    directions = (LiveDirection("slant", -4.0, 4.0, 0.5), LiveDirection("thickness", -1.0, 1.0, 0.1))

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def render(self, image_id: str, method: str, strengths: Mapping[str, float]) -> bytes:
        picture = self._archive.previews([image_id], method)[0]
        if picture is None:
            raise ArchiveKeyError(f"image {image_id} has no preview: choose another")
        pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("L"))
        return webp(np.roll(pixels, round(strengths.get("slant", 0.0)), axis=1))


@pytest.fixture(scope="session")
def shown_archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    url = str(tmp_path_factory.mktemp("shown") / "digits")
    write_archive(url)
    return open_archive(url)


@pytest.fixture(scope="session")
def archive_without_layers(shown_archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """The same, as older versions wrote it: no style layers."""
    url = tmp_path_factory.mktemp("without") / "digits"
    shutil.copytree(shown_archive.url, url, ignore=shutil.ignore_patterns("styles"))
    return open_archive(str(url))


@pytest.fixture(scope="session")
def client(shown_archive: Archive) -> TestClient:
    """Asks the explorer of the digits, by its right name."""
    return TestClient(explorer_app(shown_archive, live=Slanting(shown_archive)), base_url="http://localhost")


Serve = Callable[[Any], str]


@pytest.fixture(scope="session")
def serve_app() -> Iterator[Serve]:
    """Serves applications from this process; gives the address of each."""
    servers: list[uvicorn.Server] = []
    threads = ThreadPoolExecutor()

    def serve(app: Any) -> str:
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, ws="none"))
        threads.submit(server.run, sockets=[listening])
        servers.append(server)
        ends = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < ends, "it never started"
            time.sleep(0.01)
        return f"http://127.0.0.1:{listening.getsockname()[1]}/"

    yield serve
    for server in servers:
        server.should_exit = True
    threads.shutdown()


@pytest.fixture(scope="session")
def address(serve_app: Serve, shown_archive: Archive) -> str:
    """Of the explorer of the digits."""
    return serve_app(explorer_app(shown_archive, live=Slanting(shown_archive)))


def pytest_addoption(parser: pytest.Parser) -> None:
    sentence = (
        "take the pictures in docs, of this archive: digits by lsap_e, lsap_o_w_plus, lsap_e/hfgi and lsap_e/slant"
    )
    parser.addoption("--pictures", metavar="URL", help=sentence)
