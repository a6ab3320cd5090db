"""No kind of object is lost or changed in silence: readers refuse, or give what they gave before, and verify tells."""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lsap_archive import (
    ArchiveError,
    ArchiveWriter,
    EvaluationPlan,
    EvaluationWriter,
    PlannedRow,
    Preview,
    Store,
    Subject,
    code_arrays,
    open_archive,
    read_anchor,
    repair_archive,
    verify_archive,
)

BY = {"network": "judge", "digest": "0d1e"}


def npz(value: float) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, sums=np.full(8, value))
    return buffer.getvalue()


def webp(number: int, row: int) -> bytes:
    """A header alone, of 1 x 1 pixels, and what tells it apart."""
    body = b"\x2f\0\0\0\0" + bytes([number, row]) * 8 + b"\0"
    return b"RIFF" + struct.pack("<I", len(body) + 12) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body


def images(first: int) -> tuple[PlannedRow, ...]:
    return tuple(
        PlannedRow(row, f"image-{first + row}", f"file:///{first + row}.png", f"c{first + row}") for row in (0, 1)
    )


def publish_evaluation(writer: ArchiveWriter, run_id: str, value: float) -> None:
    evaluation = start_evaluation(writer, f"of-{run_id}", run_id, value)
    assert evaluation.publish(
        {"fid": {"name": "FD [judge]", "value": value, "num_images": 2, "num_originals": 2, **BY}}
    )


def start_evaluation(writer: ArchiveWriter, name: str, run_id: str, value: float) -> EvaluationWriter:
    plan = EvaluationPlan(name, {"run_id": run_id}, "m", None, None, {"frechet": BY}, {}, 2, 2)
    evaluation = writer.start_evaluation(plan)
    rows = {"row": [0, 1], "image_id": ["x", "y"], "measure": ["mse"] * 2, "value": [value, value + 0.5]}
    assert evaluation.write_shard(0, pa.table(rows), state=npz(value))
    return evaluation


def build(place: Any, work: Any) -> None:
    """Two runs by one method, evaluated, and an edit; a run and two evaluations under way; two of what is kept."""
    writer = place.writer()
    for number in (0, 1):
        writer.put_anchor(f"a{number}", npz(number))
        writer.keep_calibration(f"c{number}", {"strength": float(number)})
        writer.keep_versions(images(10 * number))
        writer.put_report(f"{number}.html", b"report %d" % number)
        arrays, config = code_arrays(writer.geometry), {"anchor": f"a{number}"}
        run = writer.start_run(
            work.plan(f"run-{number}", rows=images(2 * number), method="m", config=config, arrays=arrays)
        )
        previews = [Preview(row, webp(number, row)) for row in (0, 1)]
        rows = work.rows(run, 0, number)
        assert run.write_shard(0, work.arrays(run, 0, number), rows, "first", previews=previews)
        assert run.publish({})
        publish_evaluation(writer, f"run-{number}", 1.0 + number)
    config = {"calibration": {"strength": 0.0}, "calibration_digest": "c0"}
    subject = Subject("run-0", "m", "4a44dc15", "slant", 0.0)
    changes = {"method": "m/slant", "method_digest": "ed", "config": config, "arrays": arrays, "subject": subject}
    edit = writer.start_run(work.plan("edit-0", rows=images(0), **changes))
    png = [(row, b"\x89PNG %d" % row) for row in (0, 1)]
    assert edit.write_shard(0, work.arrays(edit, 0), pa.table({"status": ["ok"] * 2}), "first", images=png)
    assert edit.publish({})
    under_way = writer.start_run(work.plan("run-2", rows=images(8), method="n", method_digest="0", arrays=arrays))
    assert work.write(under_way, 0)
    for number in (0, 1):
        start_evaluation(writer, f"evaluation-{number}", f"run-{number}", 3.0 + number)
    (one,) = open_archive(place.url).sets
    for parts in (one.parts, {"of-run-0": (0,)}):
        summary = {"value": 4.0, "num_images": 2 * len(parts), "num_originals": 4}
        writer.keep_set_number(replace(one, parts=parts), summary)


def read_all(url: str) -> dict[str, Any]:
    """What any reader gives."""
    archive, writer = open_archive(url), None
    about, ids = archive.describe(), sorted(archive.sql("select distinct image_id from rows").column(0).to_pylist())
    writer = ArchiveWriter.open(
        url, generator_digest="9f86d081", generator_name="tiny", geometry=archive.geometry, storage_options={}
    )
    return {
        "about": {name: value for name, value in about.items() if name != "url"},
        "rows": archive.rows().to_pylist(),
        "codes": archive.codes(ids, "m").tolist(),
        "edited": archive.codes(ids[:2], "m/slant").tolist(),
        "images": archive.images(ids[:2], "m/slant"),
        "previews": archive.previews(ids, "m"),
        "measurements": archive.sql("select * from all_measurements").to_pylist(),
        "numbers": archive.set_numbers().to_pylist(),
        "evaluations": [(one.evaluation_id, one.summary) for one in archive.evaluations],
        "states": [list(archive.states(one)) for one in archive.sets],
        "anchors": [read_anchor(url, digest) for digest in ("a0", "a1")],
        "calibrations": [writer.get_calibration(digest) for digest in ("c0", "c1")],
        "versions": sorted(str(table.to_pylist()) for table in writer.versions()),
    }


@dataclass(frozen=True)
class Whole:
    """Such an archive, and what readers give."""

    store: Store
    before: dict[str, Any]

    @property
    def url(self) -> str:
        return self.store.url

    def key_of(self, wanted: str) -> str:
        if wanted == "sets/*":
            return open_archive(self.url).sets[0].key
        return next(key for key in self.store.sizes() if key.startswith(wanted.rstrip("*")))

    def sibling_of(self, key: str) -> bytes:
        """Another sound object of the same kind."""
        pattern = re.sub(r"[0-9a-f]{32}|[0-9]+", "[0-9a-f]+", re.escape(key))
        others = (self.store.get(one) for one in sorted(self.store.sizes()) if re.fullmatch(pattern, one))
        return next((data for data in others if data != self.store.get(key)), b"of no other kind")


@pytest.fixture(scope="module")
def built() -> list[tuple[dict[str, bytes], dict[str, Any]]]:
    """Every object, and what readers give, once the first test has made it."""
    return []


@pytest.fixture
def whole(memory_place: Any, work: Any, built: list[tuple[dict[str, bytes], dict[str, Any]]]) -> Whole:
    store = memory_place.store
    if not built:
        build(memory_place, work)
        assert verify_archive(store.url).is_sound
        built.append(({key: store.get(key) for key in store.sizes()}, read_all(store.url)))
    objects, before = built[0]
    for key, data in objects.items():
        store.put(key, data)
    return Whole(store, before)


def changed(data: bytes, how: str, sibling: bytes) -> bytes | None:
    """The object after it was damaged; None if it is gone."""
    return {"truncated": data[: len(data) // 2], "appended": data + b"#", "emptied": b"", "swapped": sibling}.get(how)


ALL = ("deleted", "truncated", "appended", "emptied", "swapped")
TWO = ("deleted", "swapped")  # where truncating is noticed as swapping is: documents and what manifests have digests of
KINDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("archive.json", "anchors/a0.npz", "calibrations/c0.json", "sets/*", "versions/*"), ALL),
    **dict.fromkeys(("runs/run-0/_manifest.json", "evaluations/of-run-0/_manifest.json"), ALL),
    **dict.fromkeys(("sequence/0000000001.json", "sequence/0000000005.json", "_copy/anchors/a0.json"), TWO),
    **{f"runs/run-0/{name}": TWO for name in ("plan.json", "images.parquet", "zarr.json", "w_plus/zarr.json")},
    **{f"runs/run-0/{name}": TWO for name in ("w_plus/c/0/0/0", "rows/shard-00000.parquet", "_commit/00000.json")},
    **{f"runs/run-0/_copy/{name}": TWO for name in ("_manifest.json", "plan.json", "w_plus/zarr.json")},
    **dict.fromkeys(("runs/edit-0/_manifest.json", "runs/edit-0/images/00000000.png"), TWO),
    **{f"evaluations/of-run-0/{name}": TWO for name in ("plan.json", "shards/00000.parquet", "states/00000.npz")},
    **{f"evaluations/of-run-0/_copy/{name}": TWO for name in ("_manifest.json", "plan.json")},
    **{f"runs/run-2/{name}": TWO for name in ("plan.json", "images.parquet", "zarr.json", "_commit/00000.json")},
    **{f"evaluations/evaluation-0/{name}": ALL for name in ("shards/00000.parquet", "states/00000.npz")},
    "runs/run-0/previews/shard-00000.parquet": ALL,
    "evaluations/evaluation-0/plan.json": TWO,
}
"""Every kind of object, by a key or its beginning, and how one is damaged.

Not here: reports, which are no part of what is read and are written again by every run, and what is staged, of which
there is a second object until it is published.
"""
TOLD_ELSEWHERE = {
    (
        "_copy/anchors/a0.json",
        "deleted",
    ): "an anchor without a copy is one of an older archive; the next inversion makes it",
    ("sets/*", "deleted"): "readers give no number, and say that it is stale; verify tells how it is found again",
    ("versions/*", "deleted"): "these images are read once more, and it is kept again",
    ("runs/run-0/_copy/_manifest.json", "deleted"): "the original is there; verify tells, and repair makes it",
    ("runs/run-0/_copy/plan.json", "deleted"): "the original is there; verify tells, and repair makes it",
    ("runs/run-0/_copy/w_plus/zarr.json", "deleted"): "the original is there; verify tells, and repair makes it",
    (
        "evaluations/of-run-0/_copy/_manifest.json",
        "deleted",
    ): "the original is there; verify tells, and repair makes it",
    ("evaluations/of-run-0/_copy/plan.json", "deleted"): "the original is there; verify tells, and repair makes it",
    (
        "runs/run-0/previews/shard-00000.parquet",
        "deleted",
    ): "nothing depends on previews; verify says that they are gone",
    ("runs/run-2/plan.json", "deleted"): "no reader sees it yet; whoever plans it again goes on",
    ("runs/run-2/_commit/00000.json", "deleted"): "no reader sees it yet; the shard is made again",
    ("evaluations/evaluation-0/plan.json", "deleted"): "no reader sees it yet; whoever plans it again goes on",
    ("evaluations/evaluation-0/shards/00000.parquet", "deleted"): "no reader sees it yet; the shard is measured again",
}
"""What verify does not call a problem, and why that is harmless."""
DIFFERENT = {
    ("sets/*", "deleted"): "a number less, and said so",
    ("versions/*", "deleted"): "planners alone read them",
    ("runs/run-0/previews/shard-00000.parquet", "deleted"): "readers show no previews there, which is what there is",
    ("calibrations/c0.json", "deleted"): "the next edit measures it again, or repair takes it from the edit's plan",
}
"""Where readers give less without an error, and why nobody is misled."""


@pytest.mark.parametrize("wanted", KINDS)
def test_what_is_lost_or_changed_is_told(whole: Whole, wanted: str) -> None:
    key = whole.key_of(wanted)
    data, sibling = whole.store.get(key), whole.sibling_of(key)
    for how in KINDS[wanted]:
        damaged = changed(data, how, sibling)
        if damaged is None:
            whole.store.delete(key)
        else:
            whole.store.put(key, damaged)
        problems = {one.key for one in verify_archive(whole.url).problems}
        folder = "/".join(key.split("/")[:2])
        is_told = key in problems or any(one.startswith(f"{folder}/") for one in problems)
        assert is_told != ((wanted, how) in TOLD_ELSEWHERE), (key, how, problems)
        try:
            is_same = read_all(whole.url) == whole.before
        except ArchiveError as error:
            assert folder in str(error) or "is not an archive" in str(error), (key, how)
        else:
            assert is_same != ((wanted, how) in DIFFERENT), (key, how)


@pytest.mark.parametrize("wanted", [one for one, how in KINDS.items() if how == ALL and "runs/" not in one])
def test_what_is_altered_is_mended(whole: Whole, wanted: str) -> None:
    key = whole.key_of(wanted)
    whole.store.put(key, whole.sibling_of(key))
    repair_archive(whole.url)
    assert verify_archive(whole.url).is_sound
