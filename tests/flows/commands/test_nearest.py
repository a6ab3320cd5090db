"""`lsap archive nearest`: what an image of the archive, or a new photo, is near to."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import lsap
from domains.digits.data import load_split
from flows.commands.cli import main
from lsap_archive import ArchiveWriter, PlannedRow, RunPlan, code_arrays
from tasks.archived.opening import geometry_of

DONE, ASKED_WRONGLY = 0, 2


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Photos of two digits, and an archive with four codes: `seven` is that of the first photo."""
    monkeypatch.setenv("LSAP_CACHE", str(tmp_path / "cache"))
    for name, index in (("seven.png", 7), ("two.png", 2)):
        Image.fromarray(load_split("test").images[index]).save(tmp_path / name)
    model = lsap.load("digits", device="cpu")
    codes = np.stack([model.invert(tmp_path / "seven.png", "lsap_e").codes] * 4)
    codes[1:] += np.array([3, 1, 2], dtype=np.float32)[:, None, None]
    geometry = geometry_of(model.config)
    url = str(tmp_path / "archive")
    writer = ArchiveWriter.open(url, generator_digest=model.digest, generator_name="digits", geometry=geometry)
    digests = ["0" * 64, "1" * 64, hashlib.sha256((tmp_path / "two.png").read_bytes()).hexdigest(), "3" * 64]
    rows = tuple(PlannedRow(row, f"image-{row}", f"/{row}.png", digest) for row, digest in enumerate(digests))
    run = writer.start_run(RunPlan("run-1", "lsap_e", "4a", {}, {}, rows, code_arrays(geometry)))
    run.write_shard(0, {"w_plus": codes}, pa.table({"status": ["ok"] * 4}), "first")
    run.publish({})
    return tmp_path


def asked(desk: Path, *words: Any, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["archive", "nearest", str(desk / "archive"), *map(str, words), "--method", "lsap_e", "-k", "2"])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_a_photo_that_is_new_is_inverted_and_one_that_is_there_is_not(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told, _ = asked(desk, desk / "seven.png", "--domain", "digits", "--device", "cpu", "--json", capsys=capsys)
    found = json.loads(told)
    assert (code, found["space"], found["answer"]) == (DONE, "w_plus", "exact")
    assert [one["image_id"] for one in found["nearest"]] == ["image-0", "image-2"]
    assert found["nearest"][0]["distance"] == pytest.approx(0, abs=1e-3)
    code, told, _ = asked(desk, desk / "two.png", "--image", "image-1", capsys=capsys)  # needs no domain
    assert code == DONE
    lines = told.splitlines()
    assert [lines[0], lines[3]] == ["nearest to image-1:", "nearest to image-2:"]
    assert [line.split()[1] for line in (*lines[1:3], *lines[4:])] == ["image-1", "image-3", "image-2", "image-0"]


def test_what_no_photo_can_be_inverted_with_is_told(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told, why = asked(desk, desk / "seven.png", capsys=capsys)
    assert (code, told) == (ASKED_WRONGLY, "") and "name the domain that inverts such pictures (--domain)" in why
    code, told, why = asked(desk, capsys=capsys)
    assert (code, told) == (ASKED_WRONGLY, "") and "nothing is asked about" in why


def test_a_generator_that_is_not_the_archives_is_refused(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    geometry = geometry_of(lsap.load("digits", device="cpu").config)
    other = str(desk / "other" / "archive")
    writer = ArchiveWriter.open(other, generator_digest="4a" * 32, generator_name="digits", geometry=geometry)
    rows = (PlannedRow(0, "image-0", "/0.png", "0" * 64),)
    run = writer.start_run(RunPlan("run-1", "lsap_e", "4a", {}, {}, rows, code_arrays(geometry)))
    codes = np.zeros((1, geometry.num_ws, geometry.w_dim), np.float32)
    run.write_shard(0, {"w_plus": codes}, pa.table({"status": ["ok"]}), "first")
    run.publish({})
    photo = (desk / "seven.png", "--domain", "digits", "--device", "cpu")
    code, told, why = asked(desk / "other", *photo, capsys=capsys)
    assert (code, told) == (ASKED_WRONGLY, "") and "holds codes of generator 4a4a" in why
    assert "pass the generator of the archive (--generator or --domain)" in why
