"""Exports are read back with the libraries that they are for, and hold the archive's codes bit for bit."""

from __future__ import annotations

import gc
import io
import json
import sys
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from lsap_archive import PlannedRow, Preview, RunArray, RunPlan, RunWriter, Subject, code_arrays, open_archive
from lsap_archive.commands.command import main
from lsap_archive.exports.chosen import choose
from lsap_archive.exports.hugging_face import write_dataset
from lsap_archive.exports.web_dataset import write_tars

IDS = ["train/anna.b.jpg", "bert", "c/../d", "dora", "emil"]
HOSTILE = "<script>`|`"


def picture(row: int, kind: str) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (8, 8), (row, 0, 200)).save(sink, kind, lossless=True)
    return sink.getvalue()


@pytest.fixture
def url(local_place: Any, work: Any) -> str:
    """An inversion of five images, of which one failed and one is a copy, with previews of the first; an edit of it."""
    rows = tuple(PlannedRow(row, image_id, f"/{row}.png", f"d{row}") for row, image_id in enumerate(IDS))
    writer = local_place.writer()
    run: RunWriter = writer.start_run(work.plan(rows=rows, config={"settings": {"num_steps": 20}, "title": HOSTILE}))
    told = {
        0: {"status": ["ok", "ok"], "sncd": [0.25, 0.5], "lpips": [0.125, float("nan")]},
        1: {"status": ["failed", "ok"], "reason": ["not_square", None], "sncd": [None, 0.75]},
        2: {"status": ["duplicate"], "duplicate_of": ["bert"]},
    }
    for shard, of_shard in told.items():
        previews = [Preview(0, picture(1, "webp"), picture(2, "webp"))] if shard == 0 else []
        assert run.write_shard(shard, work.arrays(run, shard), pa.table(of_shard), "first", previews=previews)
    assert run.publish({})
    subject = Subject("run-1", "lsap_o", "4a44dc15", "slant", 2.0)
    plan = RunPlan("edit-1", "lsap_o/slant", "ed17", {}, {}, rows, code_arrays(writer.geometry), 2, subject)
    edit = writer.start_run(plan)
    for shard, of_shard in told.items():
        table = pa.table({name: of for name, of in of_shard.items() if name in ("status", "reason", "duplicate_of")})
        arrays = {"w_plus": work.arrays(edit, shard, seed=1)["w_plus"]}
        images = [(0, picture(3, "png"))] if shard == 0 else []
        assert edit.write_shard(shard, arrays, table, "first", images=images)
    assert edit.publish({})
    found: str = local_place.url
    return found


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


OK = ["train/anna.b.jpg", "bert", "dora"]


def test_datasets_loads_the_folder_with_its_features(url: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    out = tmp_path / "codes"
    words = ["--format", "datasets", "--arrays", "w_plus,noise,trace", "--method", "lsap_o", "--pictures"]
    assert main(["export", url, str(out), *words]) == 0
    found = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert found.features["w_plus"] == datasets.Array2D((2, 3), "float32")
    assert found.features["noise_01"] == datasets.Array2D((8, 8), "float32")
    assert found.features["image"] == found.features["original"] == datasets.Image()
    assert found["image_id"][:] == OK and found["sncd"][:] == [0.25, 0.5, 0.75]
    archive, numbers = open_archive(url), found.with_format("numpy")
    np.testing.assert_array_equal(numbers[:]["w_plus"], archive.codes(OK, "lsap_o"))
    np.testing.assert_array_equal(numbers[:]["noise_01"], archive.noise(OK, "lsap_o")[1])
    np.testing.assert_array_equal(numbers[:]["trace"], archive.trace(OK, "lsap_o").values)
    assert found[0]["image"].getpixel((0, 0)) == (1, 0, 200) and found[0]["original"].getpixel((0, 0)) == (2, 0, 200)
    assert found[1]["image"] is None


def test_the_card_tells_what_is_there_and_no_name_becomes_markup(url: str, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    write_dataset(choose(open_archive(url), methods=["lsap_o"], has_pictures=True), tmp_path / "codes", file_bytes=1)
    _, header, text = (tmp_path / "codes/README.md").read_text().split("---\n", 2)
    told = yaml.safe_load(header)
    assert told["license"] == "unknown" and told["size_categories"] == ["n<1K"] and "gan-inversion" in told["tags"]
    assert told["dataset_info"]["splits"][0]["num_examples"] == 3
    assert {"name": "w_plus", "dtype": {"array2_d": {"shape": [2, 3], "dtype": "float32"}}} in told["dataset_info"][
        "features"
    ]
    assert '| `"lsap_o"` | 3 | 0.5 |' in text and "The licence is unknown" in text
    assert "`image`: what the method made of the image, of 1 of the rows" in text
    assert '"num_steps": 20' in text and '"seed": 7' in text and '`"9f86d081"`' in text
    assert text.index(HOSTILE) > text.index("```json"), "in code"
    assert len(list((tmp_path / "codes/data").glob("train-*-of-00001.parquet"))) == 1


def test_lance_and_lancedb_search_the_codes(url: str, tmp_path: Path) -> None:
    lance, lancedb = pytest.importorskip("lance"), pytest.importorskip("lancedb")
    assert main(["export", url, str(tmp_path / "codes.lance"), "--arrays", "noise"]) == 0
    found = lance.dataset(str(tmp_path / "codes.lance"))
    archive = open_archive(url)
    table = found.to_table(filter="method = 'lsap_o'")
    codes = np.stack(table.column("w_plus").to_numpy(zero_copy_only=False)).reshape(-1, 2, 3)
    np.testing.assert_array_equal(codes, archive.codes(table.column("image_id").to_pylist(), "lsap_o"))
    assert found.schema.field("w_plus").type == pa.list_(pa.float32(), 6)
    assert json.loads(found.schema.field("noise_01").metadata[b"shape"]) == [8, 8]
    assert found.count_rows() == 6, "three images of the inversion, and their edits"
    wanted = archive.codes(["dora"], "lsap_o")[0].reshape(-1)
    near = lancedb.connect(str(tmp_path)).open_table("codes").search(wanted).limit(1).to_list()
    assert (near[0]["image_id"], near[0]["method"], near[0]["_distance"]) == ("dora", "lsap_o", 0.0)


def test_webdataset_reads_the_tars(url: str, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    query = "select image_id, method from latest where method like '%slant' and status <> 'failed' -- all;"
    chosen = choose(open_archive(url), query=query, arrays=["w_plus", "noise"], has_pictures=True)
    assert write_tars(chosen, tmp_path / "tars", tar_samples=3) == 4
    assert sorted(path.name for path in (tmp_path / "tars").iterdir()) == ["000000.tar", "000001.tar"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files open
        read = webdataset.WebDataset(str(tmp_path / "tars/{000000..000001}.tar"), shardshuffle=False)
        samples = {sample["json"]["image_id"]: sample for sample in read.decode("rgb8")}
        del read
        gc.collect()
    assert list(samples) == ["train/anna.b.jpg", "bert", "dora", "emil"]
    archive = open_archive(url)
    for image_id, sample in samples.items():
        np.testing.assert_array_equal(sample["npy"], archive.codes([image_id], "lsap_o/slant")[0])
        np.testing.assert_array_equal(sample["noise_00.npy"], archive.noise([image_id], "lsap_o/slant")[0][0])
        assert (
            sample["__key__"].isdecimal()
            and sample["json"]["status"]
            == archive.sql(
                "select status from latest where method = 'lsap_o/slant' and image_id = $image_id", image_id=image_id
            )["status"][0].as_py()
        )
    first = samples["train/anna.b.jpg"]
    assert first["png"][0, 0].tolist() == [3, 0, 200] and first["original.webp"][0, 0].tolist() == [2, 0, 200]
    np.testing.assert_array_equal(samples["emil"]["npy"], samples["bert"]["npy"])  # a copy
    with tarfile.open(tmp_path / "tars/000000.tar") as tar:
        assert json.loads(tar.extractfile("000000001.json").read())["lpips"] is None  # type: ignore[union-attr]


def test_batches_are_of_one_method_and_bounded(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = choose(open_archive(url))
    monkeypatch.setattr("lsap_archive.exports.chosen._BATCH_BYTES", 2 * 4 * 6)
    found = [(batch.rows.num_rows, batch.rows.column("method")[0].as_py()) for batch in chosen.batches()]
    assert found == [(2, "lsap_o"), (1, "lsap_o"), (2, "lsap_o/slant"), (1, "lsap_o/slant")]


def test_noise_that_a_method_has_not_is_told_before_anything_is_written(
    local_place: Any, work: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = local_place.writer()
    encoded = {"method": "lsap_e", "method_digest": "ec0de7", "arrays": code_arrays(writer.geometry)}
    for plan in (work.plan("run-1"), work.plan("run-2", **encoded)):
        run = writer.start_run(plan)
        work.write_all(run)
        assert run.publish({})
    out, words = tmp_path / "out" / "codes", ["--format", "datasets", "--arrays", "noise"]
    out.parent.mkdir()
    assert main(["export", local_place.url, str(out), *words]) == 2
    assert "images of lsap_e have no noise maps of their own" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == []
    assert main(["export", local_place.url, str(out), *words, "--method", "lsap_o"]) == 0


WRONG = [
    (["--format", "datasets", "--method", "psp"], "has no method psp: it has lsap_o, lsap_o/slant"),
    (["--format", "datasets", "--table", "rows"], "--table is of files"),
    (["--format", "lance"], "wanted a name such as codes.lance"),
    (["--format", "webdataset", "--sql", "select 1 as a"], "the query gives a: image_id is wanted"),
    (["--format", "webdataset", "--sql", "select 'nobody' as image_id"], "has no image nobody"),
    (["--format", "webdataset", "--sql", "select 'bert' as image_id where false"], "no image with a code is chosen"),
    (["--format", "webdataset", "--sql", "select 'c/../d' as image_id"], "has no code of method lsap_o: it failed"),
    (["--format", "datasets", "--arrays", "sncd"], "sncd is a column of the rows"),
    (["--format", "datasets", "--arrays", "features"], "is no refinement"),
    (["--format", "webdataset", "--pictures", "--sql", "select 'bert' as image_id"], "keeps no picture"),
    (["--format", "csv"], "ends in nothing; wanted .parquet or .csv, or for codes --format datasets"),
]


@pytest.mark.parametrize(("words", "told"), WRONG)
def test_what_is_asked_wrongly_leaves_nothing(
    words: list[str], told: str, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "codes"
    out.parent.mkdir()
    assert main(["export", url, str(out), *words]) == 2
    assert told in capsys.readouterr().err and list(out.parent.iterdir()) == []


@pytest.mark.parametrize("form", ["datasets", "lance", "webdataset"])
def test_damage_on_the_way_leaves_nothing_and_what_is_there_stays(
    form: str, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "codes.lance"
    out.mkdir(parents=True)
    assert main(["export", url, str(out), "--format", form]) == 2
    assert "is there already: remove it" in capsys.readouterr().err
    out.rmdir()
    (Path(url) / "runs/edit-1/w_plus/c/1/0/0").write_bytes(b"torn")
    assert main(["export", url, str(out), "--format", form]) == 1
    assert "lsap archive repair" in capsys.readouterr().err and list(out.parent.iterdir()) == []


def test_without_the_library_of_lance_its_name_is_told(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lance", None)
    assert main(["export", url, str(tmp_path / "codes.lance")]) == 2
    assert "pip install 'lsap-archive[lance]'" in capsys.readouterr().err


def test_files_of_rows_may_be_of_some_methods(url: str, tmp_path: Path, published: Callable[[Any], Any]) -> None:
    assert main(["export", url, str(tmp_path / "rows.csv"), "--method", "lsap_o/slant", "--method", "it's"]) == 0
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    assert len(lines) == 6 and all('"lsap_o/slant"' in line for line in lines[1:])


def test_arrays_of_a_refinement_and_of_one_dimension_come_along(local_place: Any, work: Any, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    writer = local_place.writer()
    inversion = writer.start_run(work.plan())
    work.write_all(inversion)
    assert inversion.publish({})
    arrays = (*code_arrays(writer.geometry), RunArray("weights", (4,), ("parameter",), "float16"))
    subject = Subject("run-1", "lsap_o", "4a44dc15", None, None, refiner="pti")
    run = writer.start_run(work.plan("run-2", method="lsap_o/pti", method_digest="9e", subject=subject, arrays=arrays))
    for shard in range(run.num_shards):
        kept = {name: of.astype(run.arrays[name].dtype) for name, of in work.arrays(run, shard).items()}
        assert run.write_shard(shard, kept, work.rows(run, shard), "first")
    assert run.publish({})
    words = ["--format", "datasets", "--method", "lsap_o/pti", "--arrays", "weights,noise_01"]
    assert main(["export", local_place.url, str(tmp_path / "codes"), *words]) == 0
    found = datasets.load_dataset(str(tmp_path / "codes"), split="train", cache_dir=str(tmp_path / "cache"))
    assert found.features["weights"] == datasets.List(datasets.Value("float32"), length=4)
    ids, archive, numbers = found["image_id"][:], open_archive(local_place.url), found.with_format("numpy")[:]
    np.testing.assert_array_equal(numbers["weights"], archive.refined(ids, "lsap_o/pti")["weights"])
    np.testing.assert_array_equal(numbers["noise_01"], archive.noise(ids, "lsap_o")[1])
    assert "noise_00" not in found.features and len(ids) == 5
