"""Files of generator weights: told apart by content, read without running anything, verified when written."""

import gzip
import io
import json
import pickle
import shutil
import sys
import types
import zipfile
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
import safetensors.torch
import torch

from lsap_core.errors import CheckpointError
from lsap_core.generators.checkpoints import to_nvlabs
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator
from tasks.weights.generators import convert_generator, describe_generator, load_generator, save_generator

PICKLES = Path(__file__).parents[2] / "reference" / "pickles"
SNAPSHOT = PICKLES / "nvlabs_small.pkl"
HOSTILE = json.loads((PICKLES / "hostile" / "hostile.json").read_text())["files"]
CONFIG = GeneratorConfig(16, (6, 5, 4), z_dim=3, w_dim=7, num_mapping_layers=2, conv_clamp=256.0)


@pytest.fixture
def generator() -> Generator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = Generator(CONFIG)
    generator.mapping.w_avg.copy_(torch.arange(7.0))
    return generator


def saved(document: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(document, buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@torch.no_grad()
def test_a_snapshot_converts_to_the_same_network(tmp_path: Path, suffix: str) -> None:
    source = load_generator(str(SNAPSHOT))
    destination = tmp_path / "new folder" / f"a.b{suffix}"
    converted = convert_generator(str(SNAPSHOT), str(destination))
    assert [path.name for path in destination.parent.iterdir()] == [f"a.b{suffix}"]
    loaded = load_generator(str(destination))
    formats = {".safetensors": "safetensors", ".pt": "rosinality"}
    assert (source.format, loaded.format, converted.format) == ("nvlabs", formats[suffix], formats[suffix])
    assert source.digest == loaded.digest == converted.digest
    assert source.config == loaded.config == converted.config
    with np.load(PICKLES / "nvlabs_small.npz") as reference:
        z, image = torch.from_numpy(reference["in.z"]), torch.from_numpy(reference["out.img_const"])
    for each in (source, loaded, converted):
        network = each.generator
        torch.testing.assert_close(network.synthesize(network.map(z)), image, atol=5e-5, rtol=1e-5)


def test_a_converted_pt_opens_as_other_programs_open_it(tmp_path: Path) -> None:
    path = tmp_path / "generator.pt"
    convert_generator(str(SNAPSHOT), str(path))
    document = torch.load(path, weights_only=True)
    assert document["latent_avg"].shape == (64,)
    assert document["g_ema"]["convs.0.conv.weight"].shape == (1, 64, 64, 3, 3)


def test_both_protocols_and_every_name_give_one_digest(tmp_path: Path) -> None:
    disguised = tmp_path / "weights.pt"
    shutil.copy(PICKLES / "nvlabs_small_protocol4.pkl", disguised)
    assert load_generator(str(disguised)).format == "nvlabs"
    assert load_generator(str(disguised)).digest == load_generator(str(SNAPSHOT)).digest


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_what_was_saved_is_loaded_with_clamp_mean_and_notes(tmp_path: Path, generator: Generator, suffix: str) -> None:
    path = str(tmp_path / f"generator{suffix}")
    digest = save_generator(generator, path, notes=("a note",))
    before = torch.get_rng_state()
    loaded = load_generator(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.digest == digest
    assert loaded.config == CONFIG
    assert loaded.notes == ("a note",)
    assert not loaded.generator.training
    for name, tensor in generator.state_dict().items():
        assert torch.equal(loaded.generator.state_dict()[name], tensor), name


def test_weights_travel_by_url(generator: Generator) -> None:
    url = "memory://weights/tiny.safetensors"
    digest = save_generator(generator, url)
    filesystem = fsspec.filesystem("memory")
    try:
        assert load_generator(url).digest == digest
        assert convert_generator(url, "memory://weights/tiny.pt").digest == digest
        names = sorted(Path(path).name for path in filesystem.ls("/weights", detail=False))
        assert names == ["tiny.pt", "tiny.safetensors"]
        with pytest.raises(CheckpointError, match="memory://weights is a folder"):
            load_generator("memory://weights")
    finally:
        filesystem.rm("/weights", recursive=True)


def test_the_description_is_plain_values(tmp_path: Path) -> None:
    found = describe_generator(str(SNAPSHOT))
    assert json.loads(json.dumps(found)) == {
        "location": str(SNAPSHOT),
        "format": "nvlabs",
        "num_bytes": SNAPSHOT.stat().st_size,
        "digest": load_generator(str(SNAPSHOT)).digest,
        "resolution": 32,
        "channels": [64, 64, 64, 64],
        "z_dim": 64,
        "w_dim": 64,
        "num_mapping_layers": 2,
        "image_channels": 3,
        "mapping_lr_multiplier": 0.01,
        "conv_clamp": None,
        "content_box": None,
        "size": [32, 32],
        "num_ws": 8,
        "num_parameters": sum(p.numel() for p in load_generator(str(SNAPSHOT)).generator.parameters()),
        "c_dim": 0,
        "has_w_avg": True,
        "notes": [],
    }


def test_missing_noise_is_noted_and_then_kept(tmp_path: Path, generator: Generator) -> None:
    complete = tmp_path / "complete.pt"
    save_generator(generator, str(complete))
    document = torch.load(complete, weights_only=True)
    weights = {name: tensor for name, tensor in document["g_ema"].items() if not name.startswith("noises.")}
    (tmp_path / "bare.pt").write_bytes(saved({"g_ema": weights}))
    loaded = load_generator(str(tmp_path / "bare.pt"))
    assert "noise buffers 0, 1, 2, 3, 4 are missing" in loaded.notes[0]
    assert "the file has no mean of W" in loaded.notes[1]
    assert not loaded.generator.has_w_avg
    converted = convert_generator(str(tmp_path / "bare.pt"), str(tmp_path / "bare.safetensors"))
    assert converted.digest == loaded.digest
    assert converted.notes == loaded.notes
    assert load_generator(str(tmp_path / "bare.safetensors")).notes == loaded.notes


def test_what_bare_weights_cannot_say_is_given_when_they_are_converted(tmp_path: Path, generator: Generator) -> None:
    state = to_nvlabs(CONFIG, {name: tensor.detach() for name, tensor in generator.state_dict().items()})
    bare, said = str(tmp_path / "bare.pth"), str(tmp_path / "said.safetensors")
    Path(bare).write_bytes(saved({"G_ema": state}))
    assert load_generator(bare).config == replace(CONFIG, conv_clamp=None)
    converted = convert_generator(bare, said, conv_clamp=256.0, mapping_lr_multiplier=0.01)
    assert converted.digest == load_generator(said).digest
    assert (converted.config, converted.notes) == (
        CONFIG,
        ("given when it was converted: conv_clamp = 256, mapping_lr_multiplier = 0.01",),
    )
    with pytest.raises(CheckpointError, match="says conv_clamp itself: leave them out"):
        convert_generator(said, str(tmp_path / "again.safetensors"), conv_clamp=1.0)
    with pytest.raises(CheckpointError, match="conv_clamp = -1"):
        convert_generator(bare, str(tmp_path / "again.safetensors"), conv_clamp=-1.0)


def test_weights_without_metadata_in_safetensors_are_known_by_their_tensors(
    tmp_path: Path, generator: Generator
) -> None:
    state = to_nvlabs(CONFIG, {name: tensor.detach() for name, tensor in generator.state_dict().items()})
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors.torch.save({f"G_ema.{name}": tensor for name, tensor in state.items()}))
    assert load_generator(str(path)).format == "nvlabs"


def test_a_network_that_was_tuned_is_read_as_it_was_saved(
    tmp_path: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = to_nvlabs(CONFIG, {name: tensor.detach() for name, tensor in generator.state_dict().items()})
    node = persistent_network(monkeypatch, state, {"conv_clamp": 256.0})
    digest = save_generator(generator, str(tmp_path / "plain.safetensors"))
    files = {
        "model_TUNED_1.pt": saved(node),
        "old.pt": saved(node, _use_new_zipfile_serialization=False),
        "entry.pt": saved({"G_ema": node, "w_pivot": np.zeros((1, 6, 7), np.float32)}),
        "bare.pkl": pickle.dumps(node),
        "snapshot.pkl": pickle.dumps({"G": node, "D": None, "G_ema": node}),
        "state.pkl": pickle.dumps({"G_ema": state}),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        loaded = load_generator(str(tmp_path / name))
        assert loaded.format == "nvlabs"
        assert loaded.digest == digest or name == "state.pkl"


def persistent_network(
    monkeypatch: pytest.MonkeyPatch, state: dict[str, torch.Tensor], synthesis: dict[str, object]
) -> object:
    """A generator as NVlabs' persistent classes pickle it: the name of a function, and a dictionary."""

    def _reconstruct_persistent_obj(meta: object) -> None:
        raise AssertionError("a file of weights was run")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    module = types.ModuleType("torch_utils.persistence")
    vars(module)["_reconstruct_persistent_obj"] = _reconstruct_persistent_obj
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", module)

    class Node:
        def __init__(self, attributes: dict[str, object]):
            self.meta = {"type": "class", "version": 6, "module_src": "", "class_name": "N", "state": attributes}

        def __reduce__(self) -> tuple[object, ...]:
            return _reconstruct_persistent_obj, (self.meta,)

    def build(tensors: dict[str, torch.Tensor], **others: object) -> Node:
        own = {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items() if "." not in name}
        below: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            head, _, rest = name.partition(".")
            if rest:
                below.setdefault(head, {})[rest] = tensor
        modules = {name: build(inner) for name, inner in below.items()}
        return Node({"_parameters": own, "_buffers": {}, "_modules": modules, **others})

    return build(state, _init_kwargs={"mapping_kwargs": {}, "synthesis_kwargs": synthesis})


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_nothing_in_a_hostile_file_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = PICKLES / "hostile" / name
    for function in (load_generator, describe_generator):
        with pytest.raises(CheckpointError, match=name):
            function(str(path))
    with pytest.raises(CheckpointError):
        convert_generator(str(path), "converted.safetensors")
    assert list(tmp_path.iterdir()) == []
    assert HOSTILE[name]["marker"]


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, w=np.zeros(3))
    return buffer.getvalue()


ENCODER = {
    "state_dict": {"encoder.input_layer.0.weight": torch.zeros(1), "decoder.input.input": torch.zeros(1)},
    "latent_avg": torch.zeros(18, 512),
    "opts": {"device": "cuda"},
}


OTHER_FILES = {
    "empty": (b"", r"empty \(0 bytes\)"),
    "drive page": (
        b"\n<!DOCTYPE html><title>Google Drive - Quota exceeded</title>",
        "a download page was saved",
    ),
    "page": (b"\xef\xbb\xbf<HTML><body>404</body>", "a download page was saved"),
    "s3 error": (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "a download page was saved"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n", "git lfs pull"),
    "gzip": (gzip.compress(b"weights"), "unpack it first"),
    "hdf5": (b"\x89HDF\r\n\x1a\n", "HDF5"),
    "text": (b"hello world", "no known file of weights"),
    "json": (b'{"json": 1, "a": 2}', "no known file of weights"),
    "npz": (npz(), r"a zip archive of w\.npy"),
    "encoder": (saved(ENCODER), r"an encoder checkpoint \(pSp, e4e or HFGI"),
    "old encoder": (saved(ENCODER, _use_new_zipfile_serialization=False), r"an encoder checkpoint \(pSp"),
    "module": (saved({"G": torch.nn.Linear(1, 1)}), "without its average g_ema"),
    "safetensors": (safetensors.torch.save({"w": torch.zeros(1)}), "a dictionary with the entries w"),
    "network": (
        safetensors.torch.save({"w": torch.zeros(1)}, {"kind": "FeatureNet"}),
        "name FeatureNet; wanted",
    ),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_other_files_are_called_by_name(tmp_path: Path, kind: str) -> None:
    content, message = OTHER_FILES[kind]
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as refusal:
        load_generator(str(path))
    assert str(refusal.value).startswith(f"{path}: ")


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scripted.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("scripted/data.pkl", "scripted/constants.pkl", "scripted/code/__torch__.py"):
            archive.writestr(name, b"")
    with pytest.raises(CheckpointError, match="a TorchScript program, not weights"):
        load_generator(str(path))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "ffhq.pkl"
    with pytest.raises(CheckpointError, match=r"ffhq\.pkl does not exist; .* Nothing is downloaded by itself"):
        load_generator(str(missing))
    with pytest.raises(CheckpointError, match="is a folder; wanted one file"):
        load_generator(str(tmp_path))
    with pytest.raises(CheckpointError, match="does not exist"):
        load_generator("memory://nowhere/ffhq.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pkl"])
def test_a_truncated_file_is_refused_wherever_it_is_cut(tmp_path: Path, generator: Generator, suffix: str) -> None:
    if suffix == ".pkl":
        whole = SNAPSHOT.read_bytes()
    else:
        save_generator(generator, str(tmp_path / f"whole{suffix}"))
        whole = (tmp_path / f"whole{suffix}").read_bytes()
    cut = tmp_path / f"cut{suffix}"
    for size in (1, 5, 9, 100, len(whole) // 3, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        cut.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"truncated|no known file"):
            load_generator(str(cut))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_flipped_bit_is_noticed(tmp_path: Path, generator: Generator, suffix: str) -> None:
    path = tmp_path / f"generator{suffix}"
    save_generator(generator, str(path))
    data = bytearray(path.read_bytes())
    values = generator.synthesis.convs[0].weight.detach().numpy().tobytes()
    data[data.index(values) + 2] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="it was changed or damaged"):
        load_generator(str(path))


def test_a_damaged_table_of_contents_is_named(tmp_path: Path, generator: Generator) -> None:
    path = tmp_path / "generator.pt"
    save_generator(generator, str(path))
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02")] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="it is truncated or damaged"):
        load_generator(str(path))


@pytest.mark.parametrize("name", ["out.pkl", "out", "out.safetensors.zip"])
def test_only_two_formats_are_written(tmp_path: Path, generator: Generator, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"\.safetensors and \.pt can be written"):
        convert_generator(str(tmp_path / "not even there.pkl"), str(tmp_path / name))
    with pytest.raises(CheckpointError, match=r"\.safetensors and \.pt can be written"):
        save_generator(generator, str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_kept(tmp_path: Path, generator: Generator) -> None:
    path = tmp_path / "generator.pt"
    path.write_bytes(b"precious")
    with pytest.raises(CheckpointError, match="exists already"):
        save_generator(generator, str(path))
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_network_that_does_not_read_back_leaves_no_file(tmp_path: Path, generator: Generator, suffix: str) -> None:
    with torch.no_grad():
        generator.synthesis.const[0, 0, 0] = torch.nan
    with pytest.raises(CheckpointError, match=r"synthesis\.const holds values that are not finite"):
        save_generator(generator, str(tmp_path / f"generator{suffix}"))
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_gives_back_another_network_is_noticed(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    filesystem = fsspec.filesystem("memory")
    try:
        save_generator(generator, "memory://store/first.pt")
        first = filesystem.cat_file("/store/first.pt")
        with torch.no_grad():
            generator.synthesis.const.add_(1)
        monkeypatch.setattr(type(filesystem), "cat_file", lambda self, path: first)
        with pytest.raises(CheckpointError, match=r"read back as it was written: .* values in synthesis\.const"):
            save_generator(generator, "memory://store/second.pt")
        assert filesystem.ls("/store", detail=False) == ["/store/first.pt"]
    finally:
        filesystem.rm("/store", recursive=True)


def test_the_content_box_belongs_to_the_network(tmp_path: Path, generator: Generator) -> None:
    cropped = Generator(replace(CONFIG, content_box=(2, 14, 0, 16)))
    cropped.load_state_dict(generator.state_dict())
    path = str(tmp_path / "cars.safetensors")
    digest = save_generator(cropped, path)
    assert load_generator(path).config.content_box == (2, 14, 0, 16)
    assert digest != save_generator(generator, str(tmp_path / "square.safetensors"))
