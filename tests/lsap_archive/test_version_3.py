"""An archive of version 3 as it was written once, byte by byte: read, verified, gone on with, damaged and repaired.

What reads and writes is compared here with bytes of another day, not with itself. Whoever changes the format so that
one of these values changes needs another version, and keeps this file as it is.

`version_3.tar.xz` holds `images/`, six files of which one is torn and one a copy, and their `archive/`, made by these
commands with torch 2.15, zarr 3.1.6 and pyarrow 26; the run files are those of `tests/flows/test_version_3.py`:

1. `run invert` by lsap_o_w_plus, e4e and lsap_e, in shards of three.
2. A flipped bit in codes of e4e, and `archive repair`, which retired that shard; every file of images/ touched, so that
   its version is another one, and `run invert` again: a second run of e4e for the retired shard, and `versions/`.
3. `run edit` of lsap_e, by a given strength and at equal effect, with images.
4. `run evaluate` of lsap_o_w_plus and lsap_e; of lsap_e/slant_equal with a Fréchet distance to two of the originals; of
   lsap_e on four synthetic images (these two by the flow's workers in one process, without the flow).
5. A run of stylegan2_w, planned, with its first shard of two embedded by a worker.

The reports were taken out, for their size.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lsap_archive import (
    MEASUREMENT_SCHEMA,
    ROW_SCHEMA,
    ArchiveKeyError,
    ArchiveWriter,
    CorruptArchiveError,
    EvaluationPlan,
    EvaluationWriter,
    Geometry,
    PlannedRow,
    RunPlan,
    RunReader,
    RunWriter,
    Store,
    Subject,
    code_arrays,
    open_archive,
    repair_archive,
    verify_archive,
)

VERSION_3 = Path(__file__).parent / "version_3.tar.xz"
GENERATOR = "7fbcd49b4666da522039787c6164a9f9929e68a08bb80a56482b8cf08400d619"
GEOMETRY = Geometry(num_ws=8, w_dim=64, noise_sides=(4, 8, 8, 16, 16, 32, 32))
IDS = ["0-zero.png", "1-one.png", "3-three.png", "4-three-again.png", "5-five.png"]
TORN = "2-torn.png"
ENCODED, EDITED, UNFINISHED = "lsap_e-fef361ec750f35c3", "lsap_e.slant-8ff685b962264e9a", "stylegan2_w-cd170d5472603ea0"
OPTIMIZED, DAMAGED = "lsap_o_w_plus-098876544e4eac8f", "e4e-581177b62fe2e2a4"
MEASURED, SYNTHETIC = "lsap_e.slant_equal-bba0fc10d1cea501", "lsap_e-synthetic-0e63c7a281bbfe5c"
CALIBRATIONS = {"deviation": "26b256e7f3ac5dcc3cce76e0a8730000", "strength": "57b28d2f054825932934967a79fdfc70"}
ANCHOR = "0dbfe44a3f1114f3af71668adbc945d8"

STRENGTH = 1.2328493788018982
ONE = "01afdada20b5ab14633ff98d3fb4f11f4db8a9bc743bda067f0f0e7d75def0dc"  # digest of 1-one.png
MADE_AGAIN = "e4e-8af18db0922b600d"
ROW_COLUMNS = [
    "run_id",
    "row",
    "image_id",
    "uri",
    "digest",
    "status",
    "reason",
    "message",
    "duplicate_of",
    "method",
    "width",
    "height",
    "mse",
    "lpips",
    "lpips_judge",
    "identity_similarity",
    "sncd",
    "w_distance",
    "num_steps",
    "seconds",
    "final_loss",
    "shard",
    "attempt",
    "subject_run_id",
    "subject_row",
    "edit",
    "strength",
]
ROWS, MEASUREMENTS = "1d21972311d0f5c3", "cab986f195ae29ac"
RUNS = [
    ("lsap_o_w_plus-098876544e4eac8f", 1, "306660c6e20c56e5adcd4e861c89b219"),
    ("lsap_e-fef361ec750f35c3", 2, "6543cc6158b8765cd45e37c96fb0c2b5"),
    ("lsap_e.slant-8ff685b962264e9a", 5, "6a8b66449813c8c5d0eb9fe767156c4f"),
    ("lsap_e.slant_equal-826e1e69269bf81a", 6, "d9a653fbe71f60b1caa07821bdd57d18"),
    ("e4e-581177b62fe2e2a4", 3, "bbd37777523a901a51be8e25dd479196"),
    ("e4e-8af18db0922b600d", 4, "bbd37777523a901a51be8e25dd479196"),
]
EVALUATIONS = [
    "lsap_o_w_plus-2de25b688bdac59b",
    "lsap_e-7cf35818ae49f249",
    "lsap_e.slant_equal-bba0fc10d1cea501",
    "lsap_e-synthetic-0e63c7a281bbfe5c",
]
STATE = {
    "network": "378437038328d84d",
    "digest": "e757b7545b2a961f",
    "fake_features_num_samples": "d86e8112f3c4c444",
    "real_features_num_samples": "d86e8112f3c4c444",
    "fake_features_sum": "7c5791921fd2259c",
    "real_features_sum": "1a87fb2c71fda830",
    "fake_features_cov_sum": "ae1be5228b871806",
    "real_features_cov_sum": "22f1e9d5b4802f3b",
}
MEASUREMENT_COLUMNS = [
    "evaluation_id",
    "run_id",
    "row",
    "image_id",
    "method",
    "edit",
    "strength",
    "measure",
    "by",
    "value",
    "problem",
    "shard",
]
CODES = {  # first 16 digits of the SHA-256 of what is read for IDS, as little-endian float32
    "e4e": "a50dbd8e5a75deb7",
    "lsap_e": "5ccb152854b418d2",
    "lsap_e/slant": "b51cc73749b81620",
    "lsap_e/slant_equal": "e8c27a2b8adff27f",
    "lsap_o_w_plus": "03eb5f0093127e37",
}
NOISE = [
    "e25488a4bda30aa4",
    "c1f825ae5c61ba59",
    "1b39fa91efe3d209",
    "a5c4b2b8c47d8a41",
    "23f2cc647c97a5de",
    "de4c17c4e7d3ee55",
    "ddd86d0b520bbfb0",
]
TRACE = "635073272158e7fc"
IMAGES = ["43c412f7093b3d1d", "e1065f77bdb99bbb", "2311e34c37861d1c", "2311e34c37861d1c", "07efc98cead2566c"]
COUNTS = {
    "published_runs": 6,
    "unfinished_runs": 1,
    "retired_runs": 0,
    "retired_shards": 1,
    "objects": 190,
    "bytes": 562393,
    "rows": 30,
    "ok": 20,
    "failed": 5,
    "duplicate": 5,
    "evaluations": 4,
    "retired_evaluations": 0,
    "measurements": 216,
}


@pytest.fixture
def url(tmp_path: Path) -> str:
    with tarfile.open(VERSION_3) as file:
        file.extractall(tmp_path, filter="data")
    return str(tmp_path / "archive")


def short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def told(table: pa.Table) -> str:
    return short(json.dumps(table.to_pylist(), sort_keys=True).encode())


def contents(url: str) -> dict[str, bytes]:
    root = Path(url)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def writer_of(url: str) -> ArchiveWriter:
    return ArchiveWriter.open(url, generator_digest=GENERATOR, generator_name="stylegan2-32", geometry=GEOMETRY)


def write_all(run: RunWriter, shards: Iterable[int], names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Write shards with codes that no method found; what the last one was written with."""
    arrays: dict[str, np.ndarray] = {}
    for shard in shards:
        size, rng = len(run.rows_of(shard)), np.random.default_rng(shard)
        arrays = {
            name: rng.standard_normal((size, *run.arrays[name].item_shape)).astype(np.float32)
            for name in names or run.arrays
        }
        assert run.write_shard(shard, arrays, pa.table({"status": ["ok"] * size}), "first")
    return arrays


# --- read ---------------------------------------------------------------------------------------------


def test_codes_noise_traces_and_images_are_what_was_written(url: str) -> None:
    archive = open_archive(url)
    about = archive.describe()
    assert about["format_version"] == 3 and archive.geometry == GEOMETRY and archive.generator["digest"] == GENERATOR
    assert {name: short(archive.codes(IDS, name).tobytes()) for name in CODES} == CODES
    np.testing.assert_array_equal(archive.codes(IDS[2:3], "e4e"), archive.codes(IDS[3:4], "e4e"))  # a duplicate
    assert [short(maps.tobytes()) for maps in archive.noise(IDS, "lsap_o_w_plus")] == NOISE
    trace = archive.trace(IDS, "lsap_o_w_plus")
    assert trace.steps == (0, 5, 9) and trace.terms[:4] == ("loss", "lpips", "sncd", "mse")
    assert short(trace.values.tobytes()) == TRACE
    assert [short(image) for image in archive.images(IDS, "lsap_e/slant")] == IMAGES
    nearest = archive.nearest(archive.codes(["5-five.png"], "lsap_e")[0], 2, "lsap_e")
    assert nearest.column("image_id")[0].as_py() == "5-five.png" and nearest.column("distance")[0].as_py() == 0
    assert RunReader.open(url, ENCODED).noise(range(6)) is None  # an encoder's noise is the generator's own
    with pytest.raises(ArchiveKeyError, match=r"2-torn.png.*truncated"):
        archive.codes([TORN], "lsap_e")
    with pytest.raises(ArchiveKeyError, match="stylegan2_w"):
        archive.codes(IDS, "stylegan2_w")  # not published


def test_rows_say_what_became_of_every_image(url: str) -> None:
    archive = open_archive(url)
    assert [(run.run_id, run.order[0], run.method_digest) for run in archive.runs] == RUNS
    rows = archive.rows()
    assert rows.schema.equals(ROW_SCHEMA) and told(rows.select(ROW_COLUMNS)) == ROWS
    for method in CODES:
        query = "select status, reason, duplicate_of from rows where method = $method order by image_id"
        of_method = archive.sql(query, method=method).to_pylist()
        assert [row["status"] for row in of_method] == ["ok", "ok", "failed", "ok", "duplicate", "ok"]
        assert of_method[2]["reason"] == ("not_inverted" if "/" in method else "truncated")
        assert of_method[4]["duplicate_of"] == "3-three.png"
    (edit,) = [run for run in archive.runs if run.method == "lsap_e/slant_equal"]
    assert edit.subject == Subject(ENCODED, "lsap_e", RUNS[1][2], "slant_equal", STRENGTH)
    assert edit.config["calibration_digest"] == CALIBRATIONS["strength"]
    by_run = archive.sql("select run_id, count(*) from rows where method = 'e4e' group by all").to_pydict()
    assert dict(zip(*by_run.values(), strict=True)) == {DAMAGED: 3, MADE_AGAIN: 3}  # a shard was retired


def test_measurements_and_sums_of_sets_are_what_was_measured(url: str) -> None:
    archive = open_archive(url)
    measured = archive.measurements()
    assert measured.schema.equals(MEASUREMENT_SCHEMA) and told(measured.select(MEASUREMENT_COLUMNS)) == MEASUREMENTS
    known = {info.evaluation_id: info for info in archive.evaluations}
    assert list(known) == EVALUATIONS
    assert known[SYNTHETIC].subject == {"synthetic": {"count": 4, "psi": 1.0, "seed": 0}}
    assert known[MEASURED].summary["fid"]["value"] == 30.37284004710341
    (state,) = EvaluationWriter.open(url, MEASURED).states()  # of the other shard no original was there
    with np.load(io.BytesIO(state), allow_pickle=False) as arrays:
        assert STATE.items() <= {name: short(arrays[name].tobytes()) for name in arrays}.items()
    query = """select image_id, value, problem from measurements join rows using (run_id, row, image_id)
        where measure = 'mse' and measurements.method = 'lsap_e/slant_equal' order by image_id"""
    assert archive.sql(query).to_pylist() == [
        {"image_id": "0-zero.png", "value": 0.1703672856092453, "problem": None},
        {"image_id": "1-one.png", "value": 0.1331106424331665, "problem": None},
        {"image_id": "3-three.png", "value": None, "problem": "not_in_source"},
        {"image_id": "5-five.png", "value": None, "problem": "not_in_source"},
    ]


def test_what_is_kept_beside_the_runs_is_found_by_its_digest(url: str) -> None:
    writer = writer_of(url)
    deviation, strength = (writer.get_calibration(CALIBRATIONS[name]) for name in ("deviation", "strength"))
    assert deviation is not None and deviation["deviation"] == 13.223067791421602
    assert strength is not None and (strength["strength"], strength["refused"]) == (STRENGTH, None)
    anchor = writer.get_anchor(ANCHOR)
    assert anchor is not None and short(anchor) == "cda55b0556b11f24"
    (versions,) = writer.versions()
    assert versions.column("image_id").to_pylist() == ["0-zero.png", "1-one.png", "2-torn.png"]
    digests = open_archive(url).sql("select digest from rows where method = 'e4e' and image_id = '1-one.png'")
    assert digests.column("digest").to_pylist() == [ONE]


# --- verified and gone on with ------------------------------------------------------------------------


def test_verifying_finds_nothing(url: str) -> None:
    report = verify_archive(url)
    assert report.is_sound and report.counts == COUNTS
    unfinished, retired, unlisted = report.information
    assert unlisted.startswith("nothing lies below published/")
    assert unfinished == f"runs/{UNFINISHED} is not published: 1 of 2 shards are committed"
    assert retired.startswith(f"shard 1 of runs/{DAMAGED} is retired")
    repaired = repair_archive(url, dry_run=True)
    assert repaired.summary() == f"{url}: nothing to repair"


def test_a_run_that_was_begun_is_finished(url: str) -> None:
    before = contents(url)
    (run,) = writer_of(url).unfinished_runs()
    assert (run.run_id, run.missing_shards(), run.plan["trace_steps"]) == (UNFINISHED, [1], [0, 5, 9])
    arrays = write_all(run, [1])
    assert run.publish({}) and run.manifest().sequence == 11
    archive = open_archive(url)
    np.testing.assert_array_equal(archive.codes(["5-five.png"], "stylegan2_w"), arrays["w_plus"][2:])
    np.testing.assert_array_equal(archive.noise(["5-five.png"], "stylegan2_w")[6], arrays["noise_06"][2:])
    assert short(archive.codes(IDS[:2], "stylegan2_w").tobytes()) == "580115630b14f3cb"  # of the first shard
    assert verify_archive(url).is_sound
    after, kept = contents(url), {name for name in before if "/_staging/" not in name}
    assert {name: after.get(name) for name in kept} == {name: before[name] for name in kept}  # nothing is rewritten


def test_runs_edits_and_evaluations_are_added(url: str) -> None:
    before, writer = contents(url), writer_of(url)
    rows = (PlannedRow(0, "new.png", "file:///new.png", "d0"), PlannedRow(1, "1-one.png", "file:///1.png", "d1"))
    run = writer.start_run(RunPlan("lsap_e-new", "lsap_e", RUNS[1][2], {}, {}, rows, code_arrays(GEOMETRY), 2))
    codes = write_all(run, [0], ["w_plus"])["w_plus"]
    assert run.publish({})
    inverted = RunWriter.open(url, OPTIMIZED)
    subject = Subject(OPTIMIZED, "lsap_o_w_plus", RUNS[0][2], "thicker", 2.0)
    planned = tuple(PlannedRow(**row) for row in inverted.images.to_pylist())
    edit = writer.start_run(
        RunPlan("thicker", "lsap_o_w_plus/thicker", "ed17", {}, {}, planned, code_arrays(GEOMETRY), 3, subject)
    )
    write_all(edit, range(2))
    assert edit.publish({})
    config = {"subject": {"run_id": EDITED}}
    evaluation = writer.start_evaluation(
        EvaluationPlan("slant-new", {"run_id": EDITED}, "lsap_e/slant", "slant", 3.0, config, {}, 6, 3)
    )
    for shard, row in enumerate((1, 5)):
        measured = {"row": [row], "image_id": [f"{row}-{'one' if row == 1 else 'five'}.png"], "measure": ["mse"]}
        assert evaluation.write_shard(shard, pa.table({**measured, "by": [None], "value": [0.5], "problem": [None]}))
    assert evaluation.publish({})
    archive = open_archive(url)
    np.testing.assert_array_equal(archive.codes(["1-one.png", "new.png"], "lsap_e"), codes[::-1])  # the newest counts
    edited, own = (archive.noise(IDS[:2], name) for name in ("lsap_o_w_plus/thicker", "lsap_o_w_plus"))
    assert [maps.tobytes() for maps in edited] == [maps.tobytes() for maps in own]
    assert archive.measurements(method="lsap_e/slant").column("value").to_pylist() == [0.5, 0.5]
    assert [info.sequence for info in archive.evaluations] == [7, 8, 9, 10, 13]
    assert verify_archive(url).is_sound
    assert before.items() <= contents(url).items()


# --- damaged and repaired -----------------------------------------------------------------------------


def flip(store: Store, key: str) -> None:
    data = store.get(key)
    middle = len(data) // 2
    store.put(key, data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])


RESTORED = [
    f"runs/{ENCODED}/_manifest.json",
    f"runs/{OPTIMIZED}/zarr.json",
    f"runs/{OPTIMIZED}/noise_03/zarr.json",
    f"runs/{EDITED}/plan.json",
    f"runs/{EDITED}/images.parquet",
    f"evaluations/{MEASURED}/_manifest.json",
    f"calibrations/{CALIBRATIONS['strength']}.json",
    "sequence/0000000005.json",
]
RETIRED = {
    f"runs/{ENCODED}/w_plus/c/1/0/0": f"shard 1 of runs/{ENCODED}",
    f"runs/{OPTIMIZED}/noise_06/c/0/0/0": f"shard 0 of runs/{OPTIMIZED}",
    f"runs/{MADE_AGAIN}/rows/shard-00000.parquet": f"shard 0 of runs/{MADE_AGAIN}",
    f"runs/{EDITED}/images/00000001.png": f"shard 0 of runs/{EDITED}",
    f"evaluations/{MEASURED}/states/00000.npz": f"evaluations/{MEASURED}",
}
REMOVED = [f"anchors/{ANCHOR}.npz", f"calibrations/{CALIBRATIONS['deviation']}.json"]


@pytest.mark.parametrize("how", ["flipped", "deleted"])
def test_what_much_hangs_on_is_restored_as_it_was(url: str, how: str) -> None:
    store, before = Store.from_url(url), contents(url)
    for key in RESTORED:
        flip(store, key) if how == "flipped" else store.delete(key)
    found = {problem.key for problem in verify_archive(url).problems}
    assert {key for key in RESTORED if "manifest" in key} <= found  # of what hangs on these it says as much
    assert set(repair_archive(url).restored) == set(RESTORED)
    after = contents(url)
    assert verify_archive(url).is_sound and {key: after[key] for key in before} == before
    assert all(key.startswith("published/") for key in after.keys() - before.keys())  # these it did not have


def test_what_cannot_be_restored_is_retired_or_taken_away(url: str) -> None:
    store, before = Store.from_url(url), contents(url)
    for key in (*RETIRED, *REMOVED):
        flip(store, key)
    assert {problem.key for problem in verify_archive(url).problems} == {*RETIRED, *REMOVED}
    repaired = repair_archive(url)
    assert set(repaired.retired) == set(RETIRED.values()) and set(repaired.removed) == set(REMOVED)
    report = verify_archive(url)
    assert report.is_sound
    assert (report.counts["retired_shards"], report.counts["retired_evaluations"]) == (
        7,
        1,
    )  # edits with what they edit
    after = contents(url)
    for key in before.keys() - RETIRED.keys() - set(REMOVED):
        assert after[key] == before[key]  # nothing is rewritten


def test_a_lost_header_is_written_again_from_the_runs(url: str) -> None:
    Store.from_url(url).delete("archive.json")
    assert [problem.key for problem in verify_archive(url).problems] == ["archive.json"]
    assert repair_archive(url).restored == ["archive.json"]
    assert verify_archive(url).is_sound and writer_of(url).geometry == GEOMETRY


def test_a_damaged_chunk_is_noticed_by_whoever_reads_it(url: str) -> None:
    key = f"runs/{ENCODED}/w_plus/c/1/0/0"
    flip(Store.from_url(url), key)
    with pytest.raises(CorruptArchiveError, match=rf"{key}.*lsap archive repair"):
        open_archive(url).codes(["5-five.png"], "lsap_e")
    assert open_archive(url).codes(["0-zero.png"], "lsap_e").shape == (1, 8, 64)
