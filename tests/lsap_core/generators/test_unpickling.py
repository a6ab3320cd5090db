"""Pickles are read without running anything in them; what is not on the list is refused by name."""

import argparse
import functools
import io
import json
import pickle
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch

from lsap_core.errors import CheckpointError
from lsap_core.generators.checkpoints.unpickling import (
    ALLOWED_GLOBALS,
    ArrayRecord,
    PersistentNode,
    TensorRecord,
    read_pickle,
    read_records,
    read_torch,
    to_tensor,
)

PICKLES = Path(__file__).parents[2] / "reference" / "pickles"
SNAPSHOTS = ["nvlabs_small.pkl", "nvlabs_small_protocol4.pkl"]
MARKERS = [entry["marker"] for entry in json.loads((PICKLES / "hostile/hostile.json").read_text())["files"].values()]

# The program `storage = _load_from_bytes(b"x")`, without its end.
MAKE_STORAGE = b"\x80\x03ctorch.storage\n_load_from_bytes\nC\x01x\x85R"


@pytest.fixture(autouse=True)
def _nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every hostile file would leave a marker in the working directory."""
    monkeypatch.chdir(tmp_path)
    yield
    assert len(MARKERS) == 7
    assert [name for name in MARKERS if (tmp_path / name).exists()] == []


def hostile(name: str) -> bytes:
    return (PICKLES / "hostile" / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "offender"),
    [
        ("hostile_reduce.pkl", "posix.system"),
        ("hostile_eval.pkl", "builtins.eval"),
        ("hostile_dotted.pkl", "torch.serialization.os.system"),
        ("hostile_build.pkl", "builtins.getattr"),
    ],
)
def test_a_hostile_pickle_is_refused_by_the_name_it_asks_for(name: str, offender: str) -> None:
    with pytest.raises(CheckpointError, match=f"wants to use {offender}, "):
        read_records(hostile(name))


def test_a_hostile_storage_is_refused_when_its_tensor_is_wanted() -> None:
    document = read_records(hostile("hostile_storage.pkl"))
    records = [r for r in document["G_ema"].state["_parameters"].values() if isinstance(r, TensorRecord)]
    assert records
    with pytest.raises(CheckpointError, match=r"wants to use builtins\.exec, "):
        to_tensor(records[0])


def test_source_code_is_dropped_unread() -> None:
    node = read_records(hostile("hostile_module_src.pkl"))["G_ema"]
    assert isinstance(node, PersistentNode)
    assert b"fixture_marker_module_src" in hostile("hostile_module_src.pkl")
    assert "fixture_marker" not in repr(vars(node))


def test_a_hostile_torch_file_is_refused_by_name_and_without_bad_advice() -> None:
    with pytest.raises(CheckpointError, match=r"wants to use posix\.system, ") as refusal:
        read_torch(hostile("hostile_checkpoint.pt"))
    assert "weights_only" not in str(refusal.value)
    assert refusal.value.__suppress_context__


def test_the_allow_list_is_exact() -> None:
    """Adding a name is a decision about security: it is made here as well."""
    assert set(ALLOWED_GLOBALS) == {
        ("torch_utils.persistence", "_reconstruct_persistent_obj"),
        ("dnnlib.util", "EasyDict"),
        ("dnnlib", "EasyDict"),
        ("dnnlib.tflib.network", "Network"),
        ("collections", "OrderedDict"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch.storage", "_load_from_bytes"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.numeric", "_frombuffer"),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("_codecs", "encode"),
        ("builtins", "set"),
        ("__builtin__", "set"),
        ("collections", "defaultdict"),
        ("argparse", "Namespace"),
        ("torch", "device"),
        ("torch", "Size"),
        *(
            ("torch", name)
            for name in [
                "float16",
                "bfloat16",
                "float32",
                "float64",
                "int8",
                "int16",
                "int32",
                "int64",
                "uint8",
                "bool",
            ]
        ),
        *(
            (module, name)
            for module in ("pathlib", "pathlib._local")
            for name in ["Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath"]
        ),
        *(
            (module, name)
            for module in ("builtins", "__builtin__")
            for name in ("int", "float", "bool", "str", "list", "dict")
        ),
    }


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("collections", "Counter"),
        ("builtins", "exec"),
        ("builtins", "frozenset"),
        ("__builtin__", "eval"),
        ("torch._utils", "_rebuild_tensor"),
        ("torch.storage", "_load_from_bytes.__globals__"),
        ("torch", "storage._load_from_bytes"),
        ("dnnlib.util", "open_url"),
        ("dnnlib", "util.EasyDict"),
        ("numpy", "core.multiarray.scalar"),
        ("numpy.core.multiarray", "_reconstruct.__class__"),
        ("_codecs", "decode"),
        ("functools", "partial"),
    ],
)
def test_module_and_name_have_to_match_both(module: str, name: str) -> None:
    text = [b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name)]
    old = b"\x80\x02c" + module.encode() + b"\n" + name.encode() + b"\n."
    new = b"\x80\x04" + text[0] + text[1] + b"\x93."
    for program in (old, new):
        with pytest.raises(CheckpointError) as refusal:
            read_records(program)
        assert f"{module.replace('__builtin__', 'builtins')}.{name}" in str(refusal.value)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"\x80\x02(K\x01ios\nsystem\n.", "os.system"),
        (b"\x80\x02\x82\x01.", "EXT1 instruction"),
        (b"\x80\x02P1\n.", "PERSID instruction"),
        (b"\x80\x02K\x01Q.", "BINPERSID instruction"),
        (b"\x80\x02(ccollections\nOrderedDict\no.", "OBJ instruction"),
        (b"\x80\x05\x97.", "NEXT_BUFFER instruction"),
        (b"\x80\x02Nr\xff\xff\xff\xff.", "more memory"),
    ],
)
def test_instructions_that_checkpoints_do_not_use_are_refused(program: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_records(program)


@pytest.mark.parametrize(
    "program",
    [
        MAKE_STORAGE + b"}X\x04\x00\x00\x00dataC\x01ysb.",
        b"\x80\x02ctorch._utils\n_rebuild_parameter\n}X\x09\x00\x00\x00_functionNsb.",
        b"\x80\x02ctorch._utils\n_rebuild_parameter\nN}X\x09\x00\x00\x00_functionNs\x86b.",
        b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb.",
        b"\x80\x02ccollections\nOrderedDict\nN}X\x01\x00\x00\x00aK\x01s\x86b.",
        b"\x80\x02cdnnlib\nEasyDict\nN}X\x01\x00\x00\x00aK\x01s\x86b.",
        b"\x80\x02cdnnlib.tflib.network\nNetwork\nN}X\x05\x00\x00\x00stateK\x01s\x86b.",
        b"\x80\x02cdnnlib.tflib.network\nNetwork\n}X\x05\x00\x00\x00stateK\x01sb.",
        b"\x80\x02cargparse\nNamespace\nN}X\x05\x00\x00\x00stateK\x01s\x86b.",
        b"\x80\x02cargparse\nNamespace\n}X\x05\x00\x00\x00stateK\x01sb.",
    ],
    ids=[
        *("record", "function", "function slots", "class", "class slots", "dict", "network slots", "network"),
        *("options slots", "options"),
    ],
)
def test_no_attribute_of_a_record_function_or_class_can_be_set(program: bytes) -> None:
    with pytest.raises(CheckpointError):
        read_records(program)
    assert read_records(MAKE_STORAGE + b".").data == b"x"
    assert not hasattr(OrderedDict, "a")


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_a_truncated_snapshot_is_refused_wherever_it_is_cut(name: str) -> None:
    whole = (PICKLES / name).read_bytes()
    for size in (0, 1, 2, 7, 100, 5_000, len(whole) // 2, len(whole) - 1):
        with pytest.raises(CheckpointError, match="truncated or malformed"):
            read_records(whole[:size])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_tensor_comes_back_from_every_protocol(protocol: int, memory_format: torch.memory_format) -> None:
    tensor = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).to(memory_format=memory_format)
    for value in (tensor, torch.nn.Parameter(tensor)):
        record = read_records(pickle.dumps({"weight": value}, protocol))["weight"]
        assert isinstance(record, TensorRecord)
        assert torch.equal(to_tensor(record), tensor)


@pytest.mark.parametrize(
    ("shape", "stride", "offset"), [((3,), (1,), 0), ((2,), (1,), 1), ((9, 9), (0, 0), 0), ((0,), (1,), 0)]
)
def test_a_tensor_larger_than_its_storage_is_refused(
    shape: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> None:
    record = read_records(pickle.dumps(torch.zeros(2), 4))
    with pytest.raises(CheckpointError, match="claims a storage of 2 elements"):
        to_tensor(TensorRecord(record.storage, offset, shape, stride))


def test_a_storage_that_is_a_tensor_is_refused() -> None:
    buffer = io.BytesIO()
    torch.save(torch.zeros(2), buffer)
    record = read_records(pickle.dumps(torch.zeros(2), 4))
    record.storage.data = buffer.getvalue()
    with pytest.raises(CheckpointError, match="storage is a Tensor"):
        to_tensor(record)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "f8", "i8", "u1", "?"])
def test_numpy_numbers_come_back(protocol: int, dtype: str) -> None:
    array = np.array([[0, 1, 2], [3, 4, 250]]).astype(dtype)
    document = {
        "c": array,
        "fortran": np.asfortranarray(array),
        "scalar": array[1, 2],
        "none": np.array(array[0, 0]),
    }
    found = read_records(pickle.dumps(document, protocol))
    for name in ("c", "fortran", "none"):
        assert isinstance(found[name], ArrayRecord)
        np.testing.assert_array_equal(found[name].array, document[name])
    assert found["scalar"] == array[1, 2].item()
    assert type(found["scalar"]) in {float, int, bool}


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()], dtype=object),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")]),
        np.array(["text"]),
        np.datetime64("2020-01-01"),
    ],
    ids=["objects", "fields", "text", "time"],
)
def test_numpy_values_other_than_numbers_are_refused(value: np.ndarray) -> None:
    with pytest.raises(CheckpointError):
        read_records(pickle.dumps(value, 2).replace(b"builtins\nobject", b"collections\nOrderedDict"))


def test_plain_values_pass() -> None:
    document = {
        "set": {1, 2},
        "order": OrderedDict(a=1.5),
        "nested": [(None, True), "text", b"bytes", -(2**40)],
    }
    for protocol in (2, 3, 4, 5):
        assert read_records(pickle.dumps(document, protocol)) == document
    with pytest.raises(CheckpointError, match=r"collections\.Counter"):
        read_records(pickle.dumps(Counter(), 4))


def saved(document: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(document, buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("is_zip", [True, False])
def test_read_torch_reads_both_layouts_and_the_options_of_training(is_zip: bool) -> None:
    args = argparse.Namespace(size=32, path="data", ckpt=None, lr=0.002)
    before = set(torch.serialization.get_safe_globals())
    data = saved({"g_ema": {"w": torch.ones(2)}, "args": args}, _use_new_zipfile_serialization=is_zip)
    document = read_torch(data)
    assert torch.equal(document["g_ema"]["w"], torch.ones(2))
    assert document["args"] == args
    assert set(torch.serialization.get_safe_globals()) == before


class Network(torch.nn.Module):
    """A network of a class that no reader knows, with buffers of both kinds and attributes of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3, affine=False))
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("made", torch.ones(2), persistent=False)
        self.sizes = {4: 512, "mean": np.float32(2)}
        self.nothing = None


def in_pickle(document: object) -> object:
    return read_pickle(pickle.dumps(document, protocol=2))


def in_zip(document: object) -> object:
    return read_torch(saved(document))


def in_old_file(document: object) -> object:
    return read_torch(saved(document, _use_new_zipfile_serialization=False))


EVERY_WAY = [in_pickle, in_zip, in_old_file]


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("read", EVERY_WAY)
def test_a_whole_network_is_its_state_dict(read: Callable[[object], Any]) -> None:
    network = Network()
    found = read({"g_ema": network, "step": 3})
    assert found["step"] == 3 and list(found["g_ema"]) == list(network.state_dict())
    for name, tensor in network.state_dict().items():
        assert torch.equal(found["g_ema"][name], tensor), name


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("read", EVERY_WAY)
def test_what_a_network_carries_beside_its_weights_is_refused(read: Callable[[object], Any]) -> None:
    network = Network()
    network.activation = functools.partial(print, 2)
    with pytest.raises(CheckpointError, match=r"functools\.partial, at its entry G\.activation; .*nothing was run"):
        read({"G": network})


def test_a_network_that_holds_itself_or_one_part_often_is_refused() -> None:
    shared: torch.nn.Module = torch.nn.Sequential(torch.nn.Linear(1, 1))
    for _ in range(40):  # 2^40 layers, were each read
        shared = torch.nn.Sequential(shared, shared)
    with pytest.raises(CheckpointError, match="nested in itself, shared"):
        read_torch(saved(shared))
    strange = torch.nn.Sequential(torch.nn.Linear(1, 1))
    strange._modules["1"] = {"weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match="module 1 is a dict"):
        read_torch(saved(strange))


@pytest.mark.parametrize("is_zip", [True, False])
def test_read_torch_names_truncation(is_zip: bool) -> None:
    whole = saved({"g_ema": torch.zeros(1000)}, _use_new_zipfile_serialization=is_zip)
    for size in (0, 1, 50, len(whole) // 2, len(whole) - 1):
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            read_torch(whole[:size])


# --- harmless company ------------------------------------------------------------------------------------

SHARED = torch.arange(12.0).reshape(3, 4)
COMPANY = {
    "weights": SHARED,
    "window": SHARED[1:, ::2],
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 3),
    "array": np.arange(3, dtype="<f4"),
    "big endian": np.arange(3, dtype=">f8"),
    "best_val_loss": np.float64(0.25),
    "is_best": np.bool_(True),
    "path": Path("/data/faces"),
    "windows": PureWindowsPath("data"),
    "device": torch.device("cuda:1"),
    "size": torch.Size([1, 2]),
    "dtype": torch.float16,
    "args": argparse.Namespace(steps=np.int64(3), out=Path("runs")),
    "history": defaultdict(list, {"loss": [1.5]}),
}


def check_company(found: dict[str, object]) -> None:
    for name in ("weights", "window", "parameter", "half", "empty"):
        assert torch.equal(found[name], COMPANY[name]), name  # type: ignore[arg-type]
    assert torch.equal(found["array"], torch.arange(3, dtype=torch.float32))  # type: ignore[arg-type]
    assert torch.equal(found["big endian"], torch.arange(3, dtype=torch.float64))  # type: ignore[arg-type]
    plain = {name: found[name] for name in list(COMPANY)[7:]}
    assert plain == {
        "best_val_loss": 0.25,
        "is_best": True,
        "path": "/data/faces",
        "windows": "data",
        "device": "cuda:1",
        "size": (1, 2),
        "dtype": "torch.float16",
        "args": argparse.Namespace(steps=3, out="runs"),
        "history": {"loss": [1.5]},
    }


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_numbers_paths_and_devices_are_no_reason_to_refuse_weights(is_zip: bool, protocol: int) -> None:
    check_company(read_torch(saved(COMPANY, _use_new_zipfile_serialization=is_zip, pickle_protocol=protocol)))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_so_they_are_in_a_plain_pickle(protocol: int) -> None:
    document = {name: value for name, value in COMPANY.items() if name != "empty"}
    check_company(read_pickle(pickle.dumps(document, protocol)) | {"empty": COMPANY["empty"]})


class Unknown:
    """A class that no reader knows."""


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize(
    ("document", "words"),
    [
        (
            {"w": SHARED, "opts": {"hooks": [1, functools.partial(print, 2)]}},
            "functools.partial, at its entry opts.hooks.1",
        ),
        ({"w": SHARED, "activation": print}, "builtins.print, at its entry activation"),
        ({"args": argparse.Namespace(model=Unknown())}, "Unknown, at its entry args.model"),
        ({"n": np.float32(1), "a": {Unknown: 1}}, "Unknown, at its entry a."),
        (Unknown(), "Unknown, which is all that it holds"),
    ],
)
def test_what_is_refused_is_named_by_its_place(document: object, words: str, is_zip: bool) -> None:
    with pytest.raises(CheckpointError) as refusal:
        read_torch(saved(document, _use_new_zipfile_serialization=is_zip))
    assert words in str(refusal.value) and "nothing was run" in str(refusal.value)


def test_what_stands_at_many_places_is_made_once() -> None:
    doubled: list[object] = [np.zeros(1000)]
    for _ in range(40):  # 2^40 arrays, were each made
        doubled = [doubled, doubled]
    inside: list[object] = [np.zeros(1)]
    inside.append(inside)
    assert len(read_torch(saved(doubled))) == 2
    with pytest.raises(CheckpointError, match="or in itself"):
        read_torch(saved(inside))


def test_a_storage_that_is_shorter_than_its_pickle_says_is_refused() -> None:
    data = saved({"n": np.float32(1), "w": torch.arange(4.0)})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content[:8] if name.endswith("data/0") else content)
    with pytest.raises(CheckpointError, match=r"a storage of 4 torch\.float32 has 8 bytes"):
        read_torch(buffer.getvalue())
