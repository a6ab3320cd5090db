"""Files made to harm whoever opens them: nothing in them runs, and each is refused in a sentence.

The program that a pickle here names makes a marker file. Generators, directions, landmarks and MTCNN have hostile
files of their own beside their tests (tests/reference/pickles).
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from prefect.results import ResultRecord, ResultRecordMetadata
from prefect.serializers import JSONSerializer, PickleSerializer

from flows.commands.cli import main
from flows.commands.exit_codes import is_wrong_request
from lsap_archive import (
    ArchiveError,
    ArchiveWriter,
    CorruptArchiveError,
    Geometry,
    Manifest,
    PlannedRow,
    RunPlan,
    Store,
    code_arrays,
    noise_arrays,
    open_archive,
)
from lsap_core.errors import CheckpointError
from lsap_core.generators.checkpoints import read_torch
from tasks.errors import BadImageError, SourceError
from tasks.measuring.frechet import INCEPTION_FILE, FrechetState, load_frechet
from tasks.sources.source import open_source
from tasks.training.store import LATEST_KEY, TrainingStore
from tasks.weights.encoders import load_encoder
from tasks.weights.networks import LPIPS_TRUNKS, load_identity, load_perceptual
from tasks.weights.published import Published

CPU = torch.device("cpu")
MTCNN = ("pnet.npy", "rnet.npy", "onet.npy")


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


# --- pickles in every wrapping ---------------------------------------------------------------------------


def torch_file(marker: Path) -> bytes:
    """As `torch.save` writes now: a zip."""
    file = io.BytesIO()
    torch.save({"state_dict": {"w": torch.zeros(2)}, "opts": Payload(marker)}, file)
    return file.getvalue()


def old_torch_file(marker: Path) -> bytes:
    """As `torch.save` wrote once: a stream of pickles."""
    file = io.BytesIO()
    torch.save({"opts": Payload(marker)}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def bare_pickle(marker: Path) -> bytes:
    return pickle.dumps({"features.0.weight": Payload(marker)}, protocol=2)


def npz_file(marker: Path) -> bytes:
    """Arrays of objects, which `numpy.savez` pickles, under the names of every file of ours that is one."""
    names = ("network", "digest", "fake_features_num_samples", "direction_00", "w_avg")
    file = io.BytesIO()
    np.savez(file, **dict.fromkeys(names, np.array([Payload(marker)], dtype=object)))
    return file.getvalue()


def open_trustingly(make: Callable[[Path], bytes], data: bytes) -> None:
    if make is npz_file:
        np.load(io.BytesIO(data), allow_pickle=True)["network"]
    elif make is bare_pickle:
        pickle.loads(data)
    else:
        torch.load(io.BytesIO(data), weights_only=False)


PICKLES = (torch_file, old_torch_file, bare_pickle)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("make", [*PICKLES, npz_file])
def test_each_of_these_files_harms_a_loader_that_trusts_it(make: Callable[[Path], bytes], marker: Path) -> None:
    open_trustingly(make, make(marker))
    assert marker.exists()


def from_folder(names: tuple[str, ...], load: Callable[[Published], object]) -> Callable[[Path, bytes], object]:
    """A loader of files under published names."""

    def attack(folder: Path, data: bytes) -> object:
        for name in names:
            (folder / name).write_bytes(data)
        return load(Published(str(folder), takes_others=True))

    return attack


def load_checkpoint(folder: Path, data: bytes) -> object:
    """A state that somebody who may write to a training's folder has put in the place of ours."""
    store = TrainingStore(str(folder / "training"))
    key = "checkpoints/step-00000001.pt"
    store.store.put(key, data)
    saved = {"step": 1, "key": key, "num_bytes": len(data), "sha256": sha256(data), "summary": {}}
    store.store.put(LATEST_KEY, document(saved))
    latest = store.latest()
    assert latest is not None
    return store.load(latest)


def load_published_encoder(folder: Path, data: bytes) -> object:
    (folder / "e4e_ffhq_encode.pt").write_bytes(data)
    return load_encoder(str(folder / "e4e_ffhq_encode.pt"))


LOADERS: dict[str, tuple[Callable[[Path, bytes], object], tuple[Callable[[Path], bytes], ...]]] = {
    "lpips-vgg": (
        from_folder((LPIPS_TRUNKS["lpips-vgg"],), lambda published: load_perceptual("lpips-vgg", published)),
        PICKLES,
    ),
    "arcface": (
        from_folder(("model_ir_se50.pth",), lambda published: load_identity("arcface", published)),
        PICKLES,
    ),
    "moco": (
        from_folder(("moco_v2_800ep_pretrain.pth",), lambda published: load_identity("moco", published)),
        PICKLES,
    ),
    "inception": (
        from_folder((INCEPTION_FILE,), lambda published: load_frechet("inception", published, CPU)),
        PICKLES,
    ),
    "encoder": (load_published_encoder, PICKLES),
    "training": (load_checkpoint, PICKLES),
    "frechet state": (lambda folder, data: FrechetState.from_bytes(data), (npz_file, *PICKLES)),
}


@pytest.mark.parametrize(
    ("loader", "make"),
    [(name, make) for name, (_, makes) in LOADERS.items() for make in makes],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_no_loader_runs_a_pickle(loader: str, make: Callable[[Path], bytes], tmp_path: Path, marker: Path) -> None:
    load, _ = LOADERS[loader]
    with pytest.raises(CheckpointError) as refusal:
        load(tmp_path, make(marker))
    assert not marker.exists()
    assert "\n" not in str(refusal.value) and "weights_only" not in str(refusal.value)
    if make in (torch_file, old_torch_file) and loader != "frechet state":  # which is a .npz
        assert "io.open, at its entry opts;" in str(refusal.value), "which is the hostile one among harmless ones"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def document(values: dict[str, Any]) -> bytes:
    """A document as `lsap_archive` writes them: whoever may write can make the digest right."""
    from lsap_archive import encode_document

    return encode_document(values, "a forgery")


def test_inception_is_never_read_by_the_library_from_the_place_that_was_checked(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own reading is one that trusts: a file exchanged after the check must not reach it."""
    (tmp_path / INCEPTION_FILE).write_bytes(plain_torch_file({"fc.bias": torch.zeros(1008)}))
    read, seen = torch.load, []

    def exchange_and_read(file: Any, **options: Any) -> Any:
        seen.append(options["weights_only"])
        (tmp_path / INCEPTION_FILE).write_bytes(torch_file(marker))  # whenever anything has been read
        return read(file, **options)

    monkeypatch.setattr(torch, "load", exchange_and_read)
    with pytest.raises(CheckpointError, match="Missing key"):
        load_frechet("inception", Published(tmp_path), CPU)
    assert seen == [True, False]  # ours, then the library's
    assert not marker.exists()


def plain_torch_file(values: object) -> bytes:
    file = io.BytesIO()
    torch.save(values, file)
    return file.getvalue()


def test_weights_do_not_grow_when_they_are_read() -> None:
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(plain_torch_file({"w": torch.zeros(2**18)}))) as plain,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
    assert len(torch.load(io.BytesIO(packed.getvalue()), weights_only=True)["w"]) == 2**18  # PyTorch alone unpacks it
    with pytest.raises(CheckpointError, match="would unpack to 10"):
        read_torch(packed.getvalue())


# --- YAML, tables, zips, images ----------------------------------------------------------------------------


def yaml_program(marker: Path) -> str:
    return f"!!python/object/apply:builtins.open ['{marker}', 'w']"


RUN = "domain: digits\nsource: digits:test[:4]\narchive: {folder}/archive\nmethods: [lsap_o_w_plus]\n"


@pytest.mark.parametrize("place", ["run file", "change", "domain", "nested"])
def test_a_run_file_is_data(place: str, tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, program, changes = RUN.format(folder=tmp_path), yaml_program(marker), []
    if place == "run file":
        config += f"seed: {program}\n"
    elif place == "change":
        changes = ["--set", f"seed={program}"]
    elif place == "domain":
        (tmp_path / "own.yaml").write_text(f"name: {program}\n")
        changes = ["--set", f"domain={tmp_path}/own.yaml"]
    else:
        config += "embedding: " + "[" * 1500 + "]" * 1500 + "\n"
    (tmp_path / "run.yaml").write_text(config)
    assert main(["run", "invert", str(tmp_path / "run.yaml"), "--dry-run", *changes]) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("lsap: ") and "\n" not in told and "Traceback" not in told
    assert not marker.exists()


def test_a_table_cannot_name_a_type_to_be_unpickled(tmp_path: Path, marker: Path) -> None:
    """PyArrow once unpickled such types by itself; it must go on not doing so."""
    pickled = pickle.dumps(Payload(marker))
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickled}
    fields = [pa.field("uri", pa.string(), metadata=metadata), pa.field("image_id", pa.string(), metadata=metadata)]
    table = pa.table([pa.array(["a.png"]), pa.array(["a"])], schema=pa.schema(fields))
    pq.write_table(table, tmp_path / "list.parquet")
    with open_source(str(tmp_path / "list.parquet")) as source:
        assert [item.image_id for item in source.items()] == ["a"]
    assert not marker.exists()


def zip_of(method: int, name: str = "a.png", content: bytes = b"x" * 1000) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def damaged(data: bytes, where: bytes, offset: int, content: bytes) -> bytes:
    start = data.index(where) + offset
    return data[:start] + content + data[start + len(content) :]


DIRECTORY = b"PK\1\2"
MEMBERS = {
    "lzma with a broken stream": (damaged(zip_of(zipfile.ZIP_LZMA), b"a.png", 14, b"\xaa" * 8), "unsupported_format"),
    "lzma with a dictionary of 4 GiB": (
        damaged(zip_of(zipfile.ZIP_LZMA), b"a.png", 10, b"\xff" * 4),
        "unsupported_format",
    ),
    "bzip2 with a broken stream": (damaged(zip_of(zipfile.ZIP_BZIP2), b"a.png", 5, b"\xaa" * 8), "unsupported_format"),
    "a deflated bomb": (zip_of(zipfile.ZIP_DEFLATED, content=bytes(2**21)), "too_large"),
    "a bomb that lies about its size": (
        damaged(zip_of(zipfile.ZIP_DEFLATED, content=bytes(2**21)), DIRECTORY, 24, b"\x10\0\0\0"),
        "corrupt",
    ),
    "a name above the source": (zip_of(zipfile.ZIP_STORED, "../../a.png"), "unsafe_name"),
    "an absolute name": (zip_of(zipfile.ZIP_STORED, "/etc/a.png"), "unsafe_name"),
    "a Windows name": (zip_of(zipfile.ZIP_STORED, "C:\\a.png"), "unsafe_name"),
}


@pytest.mark.parametrize("kind", MEMBERS)
def test_a_member_of_a_zip_harms_only_itself(kind: str, tmp_path: Path) -> None:
    data, reason = MEMBERS[kind]
    (tmp_path / "images.zip").write_bytes(data)
    with open_source(str(tmp_path / "images.zip"), max_bytes=2**20) as source:
        (item,) = source.items()
        with pytest.raises(BadImageError) as refusal:  # not a SourceError, which stops the run and is tried again
            source.read(item)
    assert refusal.value.reason == reason


@pytest.mark.parametrize(
    "data",
    [
        damaged(zip_of(zipfile.ZIP_STORED), DIRECTORY, 6, b"\x63"),  # a version that nobody knows
    ],
)
def test_a_zip_that_cannot_be_read_is_not_tried_again(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_bytes(data)
    with pytest.raises(SourceError, match="not a complete zip file") as refusal:
        open_source(str(tmp_path / "images.zip"))
    assert is_wrong_request(refusal.value)


# --- archives --------------------------------------------------------------------------------------------

GEOMETRY = Geometry(num_ws=2, w_dim=3, noise_sides=(4,))


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Store]:
    """One run of two images, published."""
    url = str(tmp_path / "archive")
    writer = ArchiveWriter.open(url, generator_digest="9f86d081", generator_name="tiny", geometry=GEOMETRY)
    rows = tuple(PlannedRow(row, f"image-{row}", f"file:///{row}.png", f"content-{row}") for row in range(2))
    plan = RunPlan(
        "run-1", "e4e", "4a44dc15", {}, {}, rows, (*code_arrays(GEOMETRY), *noise_arrays(GEOMETRY)), shard_rows=2
    )
    run = writer.start_run(plan)
    arrays = {name: np.ones((2, *array.item_shape), np.float32) for name, array in run.arrays.items()}
    assert run.write_shard(0, arrays, pa.table({"status": ["ok", "ok"]}), "first")
    run.promote_committed()
    run.publish({})
    yield Store.from_url(url)


def forge(store: Store, objects: dict[str, bytes]) -> None:
    """Other objects in a published run, with a manifest that vouches for them: what a co-writer can do."""
    key = "runs/run-1/_manifest.json"
    manifest = Manifest.decode(store.get(key), key)
    files = [file for file in manifest.files if file.name not in objects]
    for name, content in objects.items():
        files.append(replace(manifest.files[0], name=name, size=len(content), sha256=sha256(content)))
        store.put(f"runs/run-1/{name}", content)
    store.put(key, replace(manifest, files=tuple(files)).encode())


def zarr_with(codec: dict[str, Any]) -> bytes:
    """Metadata of an array whose chunks are to be decoded by a codec that unpickles."""
    return json.dumps(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [2, 2, 3],
            "data_type": "float32",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 2, 3]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": "NaN",
            "codecs": [codec],
            "attributes": {},
        }
    ).encode()


CODECS = {"numcodecs.pickle": "Unknown codec", "pickle": "Unknown codec", "vlen-utf8": "by other codecs than"}


@pytest.mark.parametrize("codec", CODECS)
def test_a_codec_that_could_unpickle_is_refused(codec: str, archive: Store, marker: Path) -> None:
    """Or one that takes the first bytes of a chunk for a number of texts, and makes room for them."""
    forge(archive, {"w_plus/zarr.json": zarr_with({"name": codec}), "w_plus/c/0/0/0": pickle.dumps(Payload(marker))})
    with pytest.raises(CorruptArchiveError, match=CODECS[codec]) as refusal:
        open_archive(archive.url).codes(["image-0"], "e4e")
    assert "\n" not in str(refusal.value) and not marker.exists()


def test_metadata_of_the_version_of_zarr_that_can_unpickle_are_not_looked_at(archive: Store, marker: Path) -> None:
    old = {"zarr_format": 2, "shape": [2, 2, 3], "chunks": [2, 2, 3], "dtype": "|O", "order": "C", "fill_value": None}
    metadata = json.dumps({**old, "compressor": None, "filters": [{"id": "pickle"}]}).encode()
    program = pickle.dumps(Payload(marker))
    forge(archive, {"w_plus/zarr.json": b"{}", "w_plus/.zarray": metadata, "w_plus/0.0.0": program})
    with pytest.raises(ArchiveError):
        open_archive(archive.url).codes(["image-0"], "e4e")
    assert not marker.exists()


# --- results of Prefect ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_result_of_prefect_decides_by_itself_that_it_is_a_pickle(marker: Path) -> None:
    """Why Prefect keeps and reads no result of ours (tests/architecture/test_unsafe_calls.py): JSON would not do."""
    written = ResultRecord(result=1, metadata=ResultRecordMetadata(serializer=JSONSerializer(), storage_key="a"))
    forged = json.loads(written.serialize())
    forged["metadata"]["serializer"] = {"type": "pickle"}
    forged["result"] = PickleSerializer().dumps(Payload(marker)).decode()
    ResultRecord.deserialize(json.dumps(forged).encode(), backup_serializer=JSONSerializer())
    assert marker.exists()
