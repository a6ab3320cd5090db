"""Published checkpoints give the published images, and what does not fit is refused tensor by tensor.

Fixtures in tests/reference: images of rosinality/stylegan2-pytorch and NVlabs/stylegan2-ada-pytorch, computed
from weights that fill.py rebuilds from the tensors' names; key tables of the official checkpoints.
"""

import hashlib
import importlib.util
import json
import pickle
import re
import sys
import types
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lsap_core.errors import CheckpointError
from lsap_core.generators.checkpoints import (
    CanonicalCheckpoint,
    build_generator,
    canonical_shapes,
    from_canonical,
    from_nvlabs,
    from_nvlabs_discriminator_document,
    from_nvlabs_document,
    from_rosinality,
    from_rosinality_document,
    from_tensorflow_document,
    generator_digest,
    is_tensorflow,
    read_records,
    to_metadata,
    to_nvlabs,
    to_nvlabs_discriminator,
    to_rosinality,
    to_rosinality_document,
)
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.discriminator import Discriminator
from lsap_core.generators.generator import Generator
from lsap_core.generators.resample import fir_kernel
from tests.tensorflow_pickles import EasyDict, Network, pickled_tensorflow, tensorflow_network

REFERENCE = Path(__file__).parents[2] / "reference"
IMAGE_TOLERANCE = {"atol": 2e-4, "rtol": 1e-5}
TINY = GeneratorConfig(16, (6, 5, 4), z_dim=3, w_dim=7, num_mapping_layers=2)

State = dict[str, Tensor]


def load_module(path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fill = load_module(REFERENCE / "fill.py")


def key_table(name: str) -> dict[str, tuple[int, ...]]:
    table = json.loads((REFERENCE / "keys" / f"{name}.json").read_text())["keys"]
    return {key: tuple(shape) for key, shape in table.items()}


def arrays(name: str) -> dict[str, Tensor]:
    with np.load(REFERENCE / name) as file:
        return {key: torch.from_numpy(np.array(file[key])) for key in file}


def random_state(config: GeneratorConfig, *, seed: int = 0) -> State:
    random = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=random) for name, shape in canonical_shapes(config).items()}


def tiny(config: GeneratorConfig = TINY) -> CanonicalCheckpoint:
    return CanonicalCheckpoint(config, random_state(config))


def assert_same(found: CanonicalCheckpoint, wanted: CanonicalCheckpoint) -> None:
    assert found.config == wanted.config
    assert found.state.keys() == wanted.state.keys()
    for name, tensor in wanted.state.items():
        assert torch.equal(found.state[name], tensor), name
    assert found.digest == wanted.digest


# --- key tables ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [TINY, GeneratorConfig.config_e(32, z_dim=8, w_dim=8, image_channels=1)])
def test_canonical_shapes_are_those_of_the_generator(config: GeneratorConfig) -> None:
    state = Generator(config).state_dict()
    assert canonical_shapes(config) == {name: tuple(tensor.shape) for name, tensor in state.items()}


def rosinality_table(resolution: int) -> dict[str, tuple[int, ...]]:
    """The official key table; sizes without one of their own are the leading part of the 1024 table."""
    path = REFERENCE / "keys" / f"rosinality_generator_{resolution}.json"
    if path.exists():
        return key_table(path.stem)
    num_convs = 2 * (resolution.bit_length() - 3)
    limits = {"convs": num_convs, "to_rgbs": num_convs // 2, "noises": num_convs + 1}
    table = {}
    for name, shape in key_table("rosinality_generator_1024").items():
        match = re.match(r"(convs|to_rgbs|noises)\.(?:noise_)?(\d+)", name)
        if match is None or int(match[2]) < limits[match[1]]:
            table[name] = shape
    return table


@pytest.mark.parametrize("resolution", [32, 256, 1024])
def test_sizes_of_both_layouts_map_to_config_f_and_back(resolution: int) -> None:
    table = rosinality_table(resolution)
    checkpoint = from_rosinality({name: torch.zeros(shape) for name, shape in table.items() if "kernel" not in name})
    assert checkpoint.config == GeneratorConfig.config_f(resolution)
    back = to_rosinality(checkpoint.config, checkpoint.state)
    assert {name: tuple(tensor.shape) for name, tensor in back.items()} == table
    del back

    blocks = rf"synthesis\.b({'|'.join(str(2**power) for power in range(2, resolution.bit_length()))})\.|mapping\."
    table = {name: shape for name, shape in key_table("nvlabs_g_ema_1024").items() if re.match(blocks, name)}
    state = to_nvlabs(checkpoint.config, checkpoint.state | {"mapping.w_avg": torch.zeros(512)})
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == table
    assert from_nvlabs(state).config == checkpoint.config
    del state

    generator = build_generator(checkpoint)
    assert not generator.has_w_avg
    assert not any(bool(parameter.any()) for parameter in generator.parameters())
    published = {256: 30_034_338, 512: 30_276_583, 1024: 30_370_060}
    num_parameters = sum(parameter.numel() for parameter in generator.parameters())
    assert num_parameters == published.get(resolution, num_parameters)


def test_the_two_layouts_correspond_tensor_by_tensor() -> None:
    """Against the published key table: a distinct value in each tensor shows where it went."""
    config = GeneratorConfig(1024, (1,) * 9, z_dim=1, w_dim=1)
    shapes = canonical_shapes(config)
    state = {name: torch.full(shape, float(index)) for index, (name, shape) in enumerate(shapes.items())}
    rosinality = to_rosinality(config, state) | {"latent_avg": state["mapping.w_avg"]}
    nvlabs = to_nvlabs(config, state)
    rules = json.loads((REFERENCE / "keys/nvlabs_to_rosinality.json").read_text())["rules"]
    for rule in rules:
        a, b = nvlabs[rule["nvlabs"]], rosinality[rule["rosinality"]]
        gain = 4.0 if rule["change"].startswith("multiply by 4") else 1.0
        assert torch.equal(b, gain * a.reshape(b.shape)), rule
    assert {rule["rosinality"] for rule in rules} == set(rosinality)


# --- published images ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filled() -> CanonicalCheckpoint:
    """The 32-pixel generator of the reference images, filled under rosinality's names."""
    return from_rosinality(fill.fill_dict(key_table("rosinality_generator_32"), "stylegan2"))


@torch.no_grad()
def test_rosinality_weights_make_rosinality_images(filled: CanonicalCheckpoint) -> None:
    reference = arrays("gen32_image.npz")
    generator = build_generator(filled)
    noise = [reference[f"in.noise_{index}"] for index in range(7)]
    w = reference["in.trunc_latent"].lerp(generator.map(reference["in.z"]), float(reference["in.psi"]))
    torch.testing.assert_close(w, reference["out.lat_z_trunc"], atol=5e-5, rtol=1e-5)
    for name, image in {
        "img_w": generator.synthesize(reference["in.w"]),
        "img_wplus": generator.synthesize(reference["in.wplus"]),
        "img_w_noise": generator.synthesize(reference["in.w"], noise=noise),
        "img_wplus_nonoise": generator.synthesize(reference["in.wplus"], noise="none"),
        "img_z_trunc": generator.synthesize(w),
    }.items():
        torch.testing.assert_close(image, reference[f"out.{name}"], **IMAGE_TOLERANCE)


@torch.no_grad()
def test_rosinality_weights_make_nvlabs_images_in_nvlabs_layout(filled: CanonicalCheckpoint) -> None:
    reference = arrays("nvlabs32_image.npz")
    state = to_nvlabs(filled.config, filled.state | {"mapping.w_avg": reference["in.w_avg"]})
    checkpoint = from_nvlabs(state)
    assert_same(checkpoint, replace(filled, state=filled.state | {"mapping.w_avg": reference["in.w_avg"]}))
    generator = build_generator(checkpoint)
    w = generator.map(reference["in.z"])
    w_plus = generator.expand(w).clone()
    cutoff = int(reference["in.cutoff"])
    w_plus[:, :cutoff] = generator.mapping.w_avg.lerp(w_plus[:, :cutoff], float(reference["in.psi"]))
    torch.testing.assert_close(w, reference["out.w"], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(w_plus, reference["out.ws_trunc"], atol=1e-4, rtol=1e-5)
    for name, image in {
        "img_const": generator.synthesize(w),
        "img_none": generator.synthesize(w, noise="none"),
        "img_wplus_const": generator.synthesize(reference["in.wplus"]),
    }.items():
        torch.testing.assert_close(image, reference[f"out.{name}"], **IMAGE_TOLERANCE)


@pytest.mark.parametrize("name", ["nvlabs_small.pkl", "nvlabs_small_protocol4.pkl"])
@torch.no_grad()
def test_an_nvlabs_snapshot_makes_its_images(name: str) -> None:
    checkpoint = from_nvlabs_document(read_records((REFERENCE / "pickles" / name).read_bytes()))
    assert checkpoint.config == GeneratorConfig(32, (64,) * 4, z_dim=64, w_dim=64, num_mapping_layers=2)
    assert checkpoint.notes == ()
    about = json.loads((REFERENCE / "pickles/nvlabs_small.json").read_text())
    state = to_nvlabs(checkpoint.config, checkpoint.state)
    assert {
        key: {"shape": list(tensor.shape), "crc32_float32": zlib.crc32(tensor.numpy().tobytes())}
        for key, tensor in state.items()
    } == about["state"]

    reference = arrays("pickles/nvlabs_small.npz")
    generator = build_generator(checkpoint)
    assert generator.has_w_avg
    w = generator.map(reference["in.z"])
    truncated = generator.mapping.w_avg.lerp(w, about["truncation_psi"])
    tolerance = about["tolerance"]
    torch.testing.assert_close(generator.expand(w), reference["out.ws"], **tolerance)
    torch.testing.assert_close(generator.expand(truncated), reference["out.ws_trunc"], **tolerance)
    torch.testing.assert_close(generator.synthesize(w), reference["out.img_const"], **tolerance)
    torch.testing.assert_close(generator.synthesize(w, noise="none"), reference["out.img_none"], **tolerance)


# --- rosinality ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, num_mapping_layers=1),
        replace(TINY, image_channels=1),
        GeneratorConfig(8, (2, 9), z_dim=5, w_dim=4, num_mapping_layers=8),
        GeneratorConfig.config_e(64, z_dim=4, w_dim=4, num_mapping_layers=2),
    ],
    ids=["table", "one mapping layer", "gray", "8 pixels", "half width"],
)
def test_any_architecture_goes_through_both_layouts(config: GeneratorConfig) -> None:
    checkpoint = tiny(config)
    w_avg = checkpoint.state["mapping.w_avg"]
    assert_same(from_rosinality(to_rosinality(config, checkpoint.state), w_avg), checkpoint)
    assert_same(from_rosinality(to_rosinality(config, checkpoint.state), w_avg[None]), checkpoint)
    assert_same(from_nvlabs(to_nvlabs(config, checkpoint.state)), checkpoint)


def test_the_prefix_of_distributed_training_and_missing_kernels_are_accepted() -> None:
    checkpoint = tiny()
    state = to_rosinality(TINY, checkpoint.state)
    state = {f"module.{name}": tensor for name, tensor in state.items() if not name.endswith("kernel")}
    assert_same(from_rosinality(state, checkpoint.state["mapping.w_avg"]), checkpoint)


def test_missing_noise_is_drawn_once_and_reported() -> None:
    state = to_rosinality(TINY, tiny().state)
    kept = state["noises.noise_0"]
    for index in (1, 3):
        del state[f"noises.noise_{index}"]
    first, second = from_rosinality(state), from_rosinality(state)
    assert first.digest == second.digest
    assert len(first.notes) == 1
    assert "noise buffers 1, 3 are missing" in first.notes[0]
    assert "RandomState(0 + index)" in first.notes[0]
    assert torch.equal(first.state["synthesis.convs.0.noise_const"], kept[0, 0])
    drawn = np.random.RandomState(3).standard_normal((16, 16)).astype(np.float32)
    assert torch.equal(first.state["synthesis.convs.3.noise_const"], torch.from_numpy(drawn))


def test_what_does_not_fit_is_listed_as_found_and_expected() -> None:
    state = to_rosinality(TINY, tiny().state)
    del state["convs.1.conv.weight"]
    state["convs.0.conv.modulation.weight"] = torch.zeros(4, 4)
    state["to_rgb1.bias"] = torch.zeros(1, 3, 1, 1, dtype=torch.int64)
    state["input.input"] = torch.zeros(1).expand(1, 6, 4, 4)
    state["style.1.bias"] = [0.0] * 7
    state["surprise"] = torch.zeros(2, 3)
    with pytest.raises(CheckpointError) as refusal:
        from_rosinality(state)
    lines = str(refusal.value).splitlines()
    assert lines[0] == "the rosinality generator: 6 tensors differ from what its sizes need"
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[1:]}
    assert re.fullmatch(r"missing +\[1, 5, 5, 3, 3\]", rows["convs.1.conv.weight"])
    assert re.fullmatch(r"\[4, 4\] +\[6, 7\]", rows["convs.0.conv.modulation.weight"])
    assert re.fullmatch(r"torch\.int64 +\[1, 3, 1, 1\] float", rows["to_rgb1.bias"])
    assert re.fullmatch(r"a tensor without memory for each value +\[1, 6, 4, 4\]", rows["input.input"])
    assert re.fullmatch(r"list +\[7\]", rows["style.1.bias"])
    assert re.fullmatch(r"\[2, 3\] +nothing", rows["surprise"])


def test_a_long_table_is_cut_and_counted() -> None:
    state = to_rosinality(TINY, tiny().state) | {f"extra.{index}": torch.zeros(1) for index in range(20)}
    with pytest.raises(CheckpointError, match=r"20 tensors differ[^~]*\n  \.\.\. and 12 more$") as refusal:
        from_rosinality(state)
    assert len(str(refusal.value).splitlines()) == 1 + 1 + 8 + 1


def test_a_meta_or_sparse_tensor_is_refused() -> None:
    for tensor in (torch.zeros(7, 3, device="meta"), torch.zeros(7, 3).to_sparse()):
        with pytest.raises(CheckpointError, match="without memory for each value"):
            from_rosinality(to_rosinality(TINY, tiny().state) | {"style.1.weight": tensor})


@pytest.mark.parametrize("name", ["input.input", "style.1.weight", "conv1.activate.bias"])
def test_values_that_are_not_finite_are_refused(name: str) -> None:
    state = to_rosinality(TINY, tiny().state)
    state[name].view(-1)[0] = torch.inf
    with pytest.raises(CheckpointError, match="not finite"):
        from_rosinality(state)


def test_another_filter_is_refused() -> None:
    state = to_rosinality(TINY, tiny().state)
    state["convs.2.conv.blur.kernel"] = torch.ones(4, 4) / 4
    with pytest.raises(
        CheckpointError, match=r"the filter convs\.2\.conv\.blur\.kernel is .* only that of \[1, 3, 3, 1\]"
    ):
        from_rosinality(state)
    with pytest.raises(CheckpointError, match=r"\[2, 2\] +\[4, 4\]"):
        from_rosinality(state | {"convs.2.conv.blur.kernel": torch.ones(2, 2)})


def test_a_mean_of_another_shape_is_refused() -> None:
    state = to_rosinality(TINY, tiny().state)
    with pytest.raises(CheckpointError, match=r"latent_avg is \[6, 7\]; wanted the mean of W, \[7\]"):
        from_rosinality(state, torch.zeros(6, 7))


def test_networks_whose_sizes_cannot_be_read_are_refused() -> None:
    with pytest.raises(CheckpointError, match="sizes cannot be read"):
        from_rosinality({})
    with pytest.raises(CheckpointError, match="sizes cannot be read"):
        from_rosinality({"input_layer.0.weight": torch.zeros(64, 3, 3, 3)})
    with pytest.raises(CheckpointError, match="sizes cannot be read"):
        from_nvlabs({"synthesis.b64.const": torch.zeros(1)})


def test_half_precision_weights_become_float32() -> None:
    state = {name: tensor.half() for name, tensor in to_rosinality(TINY, tiny().state).items()}
    checkpoint = from_rosinality(state)
    assert {tensor.dtype for tensor in checkpoint.state.values()} == {torch.float32}
    assert torch.equal(checkpoint.state["synthesis.const"], state["input.input"][0].float())


def test_the_document_keeps_what_the_layout_cannot() -> None:
    config = replace(TINY, conv_clamp=256.0, mapping_lr_multiplier=0.1, content_box=(2, 14, 0, 16))
    checkpoint = replace(tiny(config), notes=("a note",))
    document = to_rosinality_document(checkpoint)
    assert set(document) == {"g_ema", "latent_avg", "lsap_generator"}
    found = from_rosinality_document(document | {"g": {}, "d": {}, "args": None})
    assert_same(found, checkpoint)
    assert found.notes == ("a note",)
    del document["lsap_generator"]
    assert from_rosinality_document(document).config == TINY


def test_a_document_without_mean_has_none() -> None:
    checkpoint = CanonicalCheckpoint(TINY, random_state(TINY) | {"mapping.w_avg": torch.full((7,), torch.nan)})
    document = to_rosinality_document(checkpoint)
    assert "latent_avg" not in document
    found = from_rosinality_document(document)
    assert not build_generator(found).has_w_avg
    assert found.digest == checkpoint.digest


def test_an_entry_of_ours_that_contradicts_the_tensors_is_refused() -> None:
    document = to_rosinality_document(tiny())
    other = to_rosinality_document(tiny(replace(TINY, num_mapping_layers=1)))["lsap_generator"]
    with pytest.raises(CheckpointError, match="the tensors have the sizes"):
        from_rosinality_document(document | {"lsap_generator": other})
    with pytest.raises(CheckpointError, match="holds no configuration"):
        from_rosinality_document(document | {"lsap_generator": 3})
    document["g_ema"]["input.input"][0, 0, 0, 0] += 1
    with pytest.raises(CheckpointError, match="changed or damaged"):
        from_rosinality_document(document)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (
            {"state_dict": {"encoder.input_layer.0.weight": 0, "decoder.input.input": 0}, "opts": {}},
            "pSp, e4e or HFGI",
        ),
        ({"encoder": {}, "decoder": {}, "opts": {}}, "GANInverter"),
        ({"state_dict": {"fc.weight": 0, "conv1.weight": 0}}, "another network (its modules: conv1, fc)"),
        ({"g": {}, "d": {}}, "without its average g_ema"),
        ({"input.input": 0, "style.1.weight": 0}, "bare weights of a generator"),
        ({"synthesis.b4.const": 0}, "NVlabs"),
        ({"input_layer.0.weight": 0}, "a dictionary with the entries input_layer.0.weight"),
        (torch.zeros(3), "a single Tensor"),
    ],
)
def test_other_checkpoints_are_called_by_name(document: object, words: str) -> None:
    with pytest.raises(CheckpointError, match=f"entry g_ema; found .*{re.escape(words)}"):
        from_rosinality_document(document)


# --- NVlabs ----------------------------------------------------------------------------------------------


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
    raise AssertionError("only the name of this function is needed, for pickling")


class Persistent:
    """A module that is pickled as NVlabs' persistent classes are."""

    def __init__(self, class_name: str, **attributes: Any):
        self.attributes = {"_parameters": {}, "_buffers": {}, "_modules": {}, **attributes}
        self.meta = {
            "type": "class",
            "version": 6,
            "module_src": "raise SystemExit",
            "class_name": class_name,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return _reconstruct_persistent_obj, (self.meta | {"state": self.attributes},), None


Snapshot = Callable[..., Any]
NESTED = {
    "z_dim": 3,
    "c_dim": 0,
    "w_dim": 7,
    "img_resolution": 16,
    "img_channels": 3,
    "mapping_kwargs": EasyDict(num_layers=2),
    "synthesis_kwargs": EasyDict(channel_base=64, channel_max=6, num_fp16_res=0, conv_clamp=None),
}
FLAT = {name: value for name, value in NESTED.items() if name != "synthesis_kwargs"} | {
    "channel_base": 64,
    "channel_max": 6,
    "fused_modconv_default": "inference_only",
}


@pytest.fixture
def pickled(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], Any]:
    """Pickle a document under the names that NVlabs' code has, and read its records."""
    modules: dict[str, dict[str, Any]] = {
        "dnnlib": {},
        "dnnlib.util": {"EasyDict": EasyDict},
        "torch_utils": {},
        "torch_utils.persistence": {"_reconstruct_persistent_obj": _reconstruct_persistent_obj},
    }
    for module_name, members in modules.items():
        module = types.ModuleType(module_name)
        for name, member in members.items():
            setattr(module, name, member)
            monkeypatch.setattr(member, "__module__", module_name)
        monkeypatch.setitem(sys.modules, module_name, module)
    return lambda document: read_records(pickle.dumps(document, 4))


def network(state: State, init_kwargs: dict[str, Any], **attributes: Any) -> Persistent:
    """A tree of persistent modules with the tensors of a flat state; every layer carries the attributes."""
    top = Persistent("Generator", _init_args=(), _init_kwargs=EasyDict(init_kwargs))
    for name, tensor in state.items():
        *path, leaf = name.split(".")
        node = top
        for part in path:
            node = node.attributes["_modules"].setdefault(part, Persistent("Module", **attributes))
        is_buffer = leaf in {"w_avg", "noise_const", "resample_filter"}
        value = tensor if is_buffer else torch.nn.Parameter(tensor)
        node.attributes["_buffers" if is_buffer else "_parameters"][leaf] = value
    return top


def snapshot(init_kwargs: dict[str, Any], **attributes: Any) -> dict[str, Any]:
    state = to_nvlabs(TINY, random_state(TINY))
    return {"G": None, "D": None, "G_ema": network(state, init_kwargs, **attributes), "augment_pipe": None}


@pytest.mark.parametrize(
    ("init_kwargs", "attributes", "conv_clamp"),
    [
        (NESTED, {}, None),
        (NESTED | {"synthesis_kwargs": EasyDict(conv_clamp=256)}, {"conv_clamp": 256}, 256.0),
        (NESTED | {"synthesis_kwargs": EasyDict()}, {}, None),
        (FLAT, {}, 256.0),
        (FLAT | {"conv_clamp": None}, {}, None),
        (FLAT | {"conv_clamp": 64.0}, {"conv_clamp": 64.0}, 64.0),
        ({name: FLAT[name] for name in ("z_dim", "c_dim", "w_dim")}, {"conv_clamp": 256}, 256.0),
        ({name: FLAT[name] for name in ("z_dim", "c_dim", "w_dim")}, {"conv_clamp": None}, None),
    ],
)
def test_the_clamp_is_read_from_both_layouts_of_options(
    pickled: Snapshot, init_kwargs: dict[str, Any], attributes: dict[str, Any], conv_clamp: float | None
) -> None:
    found = from_nvlabs_document(pickled(snapshot(init_kwargs, **attributes)))
    assert_same(found, tiny(replace(TINY, conv_clamp=conv_clamp)))
    assert isinstance(found.config.conv_clamp, float | None)
    assert found.notes == ()


def test_the_discriminator_of_a_snapshot_is_read(pickled: Snapshot) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        original = Discriminator(TINY)
    state = to_nvlabs_discriminator(original, TINY.resolution)
    options = {"c_dim": 0, "img_resolution": 16, "architecture": "resnet", "epilogue_kwargs": {"mbstd_group_size": 4}}
    document = {"D": network(state | {"b16.skip.resample_filter": fir_kernel()}, options, conv_clamp=256)}
    found = from_nvlabs_discriminator_document(pickled(document))
    images = torch.randn(4, TINY.image_channels, 16, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found(images), original(images))
    for change, message in (
        ({"c_dim": 5}, "c_dim = 5; only 0"),
        ({"architecture": "skip"}, "architecture = skip; only 'resnet'"),
        ({"epilogue_kwargs": {"mbstd_group_size": 8}}, "mbstd_group_size = 8; only 4"),
    ):
        with pytest.raises(CheckpointError, match=f"the discriminator has {message}"):
            from_nvlabs_discriminator_document(pickled({"D": network(state, options | change)}))
    with pytest.raises(CheckpointError, match="wanted a snapshot with the network D; found none"):
        from_nvlabs_discriminator_document(pickled({"D": None}))


def test_a_clamped_network_makes_clamped_images(pickled: Snapshot) -> None:
    checkpoint = from_nvlabs_document(pickled(snapshot(FLAT | {"conv_clamp": 0.5})))
    with torch.no_grad():
        generator = build_generator(checkpoint)
        image = generator.synthesize(generator.map(torch.ones(1, 3)))
        free = build_generator(tiny()).synthesize(generator.map(torch.ones(1, 3)))
    assert float(image.abs().max()) <= 0.5 * TINY.num_to_rgbs < float(free.abs().max())


def test_layers_that_contradict_the_options_are_noted(pickled: Snapshot) -> None:
    found = from_nvlabs_document(pickled(snapshot(FLAT, conv_clamp=None)))
    assert found.config.conv_clamp == 256.0
    assert found.notes == ("the layers carry the clamp None, the options say 256.0, which is used",)


def test_unknown_options_are_noted_and_the_multiplier_is_kept(pickled: Snapshot) -> None:
    mapping = EasyDict(num_layers=2, lr_multiplier=0.1, w_avg_beta=0.998)
    found = from_nvlabs_document(
        pickled(snapshot(FLAT | {"mapping_kwargs": mapping, "novelty": 1, "conv_clamp": None}))
    )
    assert found.config == replace(TINY, mapping_lr_multiplier=0.1)
    assert found.notes == ("options of the snapshot that were not used: novelty",)


def test_missing_mean_and_filters_are_accepted() -> None:
    state = to_nvlabs(TINY, random_state(TINY))
    del state["mapping.w_avg"]
    checkpoint = from_nvlabs({name: tensor for name, tensor in state.items() if "filter" not in name})
    assert not build_generator(checkpoint).has_w_avg
    assert "mapping.w_avg" not in to_nvlabs(TINY, checkpoint.state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"c_dim": 10}, r"conditional \(c_dim = 10\)"),
        ({"img_resolution": 32}, "made with img_resolution = 32, its tensors have 16"),
        ({"img_channels": 1}, "made with img_channels = 1, its tensors have 3"),
        ({"z_dim": 4}, "made with z_dim = 4, its tensors have 3"),
        ({"synthesis_kwargs": {"architecture": "resnet"}}, "architecture = 'resnet'; only 'skip'"),
        ({"synthesis_kwargs": {"resample_filter": [1, 1]}}, r"resample_filter = \[1, 1\]"),
        ({"synthesis_kwargs": {"use_noise": False}}, "use_noise = False"),
        ({"synthesis_kwargs": {"activation": "relu"}}, "activation = 'relu'"),
        ({"mapping_kwargs": {"activation": "linear"}}, "activation = 'linear'"),
        ({"synthesis_kwargs": {"conv_clamp": "256"}}, "conv_clamp is a str"),
        ({"synthesis_kwargs": 3}, "synthesis_kwargs is a int"),
    ],
)
def test_other_networks_are_refused_by_their_options(pickled: Snapshot, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        from_nvlabs_document(pickled(snapshot(NESTED | changes)))


def test_conditional_and_stylegan3_networks_are_known_by_their_tensors(pickled: Snapshot) -> None:
    state = to_nvlabs(TINY, random_state(TINY))
    with pytest.raises(CheckpointError, match="conditional"):
        from_nvlabs(state | {"mapping.embed.weight": torch.zeros(7, 3), "mapping.fc0.weight": torch.zeros(7, 10)})
    third = {"synthesis.input.affine.weight": torch.zeros(4, 7), "synthesis.L0_36_512.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="StyleGAN3"):
        from_nvlabs(third)
    with pytest.raises(CheckpointError, match="StyleGAN3"):
        from_nvlabs_document(pickled({"G_ema": network(third, {})}))


def test_snapshots_without_a_readable_network_are_refused(pickled: Snapshot) -> None:
    good = snapshot(NESTED)
    with pytest.raises(CheckpointError, match="found G: a Generator, D: None"):
        from_nvlabs_document(pickled({"G": good["G_ema"], "D": None}))
    with pytest.raises(CheckpointError, match="found a list"):
        from_nvlabs_document(pickled([good]))
    with pytest.raises(CheckpointError, match="_init_kwargs is missing"):
        from_nvlabs_document(pickled({"G_ema": Persistent("Generator")}))
    good["G_ema"].attributes["_buffers"] = 3
    with pytest.raises(CheckpointError, match="a Generator has no _buffers"):
        from_nvlabs_document(pickled(good))
    old = snapshot(NESTED)
    old["G_ema"].meta["version"] = 5
    with pytest.raises(CheckpointError, match="version 5; version 6 is known"):
        pickled(old)


def test_a_module_inside_itself_is_refused(pickled: Snapshot) -> None:
    document = pickled(snapshot(NESTED))
    mapping = document["G_ema"].state["_modules"]["mapping"]
    mapping.state["_modules"]["again"] = mapping
    with pytest.raises(CheckpointError, match=r"mapping\.again is nested in itself"):
        from_nvlabs_document(document)


def test_tensors_of_a_snapshot_that_do_not_fit_are_listed(pickled: Snapshot) -> None:
    state = to_nvlabs(TINY, random_state(TINY))
    state["synthesis.b8.conv0.weight"] = torch.zeros(5, 9, 3, 3)
    state["synthesis.b8.skip.weight"] = torch.zeros(1)
    del state["synthesis.b16.torgb.bias"]
    with pytest.raises(CheckpointError) as refusal:
        from_nvlabs_document(pickled({"G_ema": network(state, NESTED)}))
    text = str(refusal.value)
    assert "3 tensors differ" in text
    assert re.search(r"synthesis\.b8\.conv0\.weight +\[5, 9, 3, 3\] +\[5, 6, 3, 3\]", text)
    assert re.search(r"synthesis\.b8\.skip\.weight +\[1\] +nothing", text)
    assert re.search(r"synthesis\.b16\.torgb\.bias +missing +\[3\]", text)
    with pytest.raises(CheckpointError, match="the filter"):
        from_nvlabs(to_nvlabs(TINY, random_state(TINY)) | {"synthesis.b8.resample_filter": torch.ones(4, 4)})


# --- TensorFlow ------------------------------------------------------------------------------------------


def unpickled(networks: object) -> Any:
    return read_records(pickled_tensorflow(networks))


def exact(config: GeneratorConfig = TINY) -> CanonicalCheckpoint:
    """Style biases survive minus one, plus one only where float32 is exact."""
    checkpoint = tiny(config)
    rounded = {name: (tensor * 64).round() / 64 for name, tensor in checkpoint.state.items()}
    return replace(checkpoint, state=rounded)


def test_a_tensorflow_pickle_holds_the_same_network(pickled: Snapshot) -> None:
    wanted = exact(replace(TINY, conv_clamp=256.0))
    nets = (Network(version=4), Network(version=4), tensorflow_network(wanted, conv_clamp=256, fmap_base=32))
    document = unpickled(nets)
    assert is_tensorflow(document)
    assert_same(from_tensorflow_document(document), wanted)
    assert_same(from_tensorflow_document(document[2]), wanted)
    assert not is_tensorflow(pickled(snapshot(NESTED)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": 3}, "older than StyleGAN2"),
        ({"label_size": 10}, "conditional"),
        ({"architecture": "orig"}, "architecture = 'orig'"),
        ({"resample_kernel": [1, 1]}, "resample_filter"),
        ({"resolution": 32}, "made with img_resolution = 32, its tensors have 16"),
    ],
)
def test_other_tensorflow_networks_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        from_tensorflow_document(unpickled(tensorflow_network(exact(), **options)))


def test_tensorflow_variables_that_do_not_fit_are_named() -> None:
    network = tensorflow_network(exact())
    network.state["components"]["synthesis"].state["variables"] += [("8x8/Skip/weight", np.zeros(2, np.float32))]
    with pytest.raises(CheckpointError, match=r"synthesis/8x8/Skip/weight +\[2\] +nothing"):
        from_tensorflow_document(unpickled(network))
    network.state["components"]["synthesis"].state["variables"] += [("ToRGB_lod1/weight", np.zeros(2, np.float32))]
    with pytest.raises(CheckpointError, match='architecture "orig"'):
        from_tensorflow_document(unpickled(network))


# --- canonical form and digest ---------------------------------------------------------------------------


def test_the_digest_is_what_its_documentation_says() -> None:
    checkpoint = tiny(replace(TINY, conv_clamp=256.0))
    text = (
        '{"channels":[6,5,4],"content_box":null,"conv_clamp":256.0,"image_channels":3,'
        '"mapping_lr_multiplier":0.01,"num_mapping_layers":2,"resolution":16,"w_dim":7,"z_dim":3}'
    )
    parts = [f"lsap generator 1\n{text}\n".encode()]
    for name, tensor in sorted(checkpoint.state.items()):
        parts += [f"{name} float32 {list(tensor.shape)}\n".encode(), tensor.numpy().astype("<f4").tobytes()]
    assert checkpoint.digest == hashlib.sha256(b"".join(parts)).hexdigest()


def test_the_digest_sees_weights_and_sizes_only() -> None:
    checkpoint = tiny()
    reordered = dict(reversed(checkpoint.state.items()))
    strided = {name: torch.stack([tensor, tensor], -1)[..., 0] for name, tensor in checkpoint.state.items()}
    assert generator_digest(TINY, reordered) == generator_digest(TINY, strided) == checkpoint.digest
    assert replace(checkpoint, notes=("note",)).digest == checkpoint.digest
    changed = {name: tensor.clone() for name, tensor in checkpoint.state.items()}
    changed["synthesis.convs.2.noise_const"][0, 0] += 1e-3
    digests = {
        checkpoint.digest,
        generator_digest(TINY, changed),
        generator_digest(replace(TINY, conv_clamp=256.0), checkpoint.state),
        generator_digest(replace(TINY, content_box=(0, 8, 0, 16)), checkpoint.state),
    }
    assert len(digests) == 4
    with pytest.raises(CheckpointError, match=r"torch\.float64"):
        generator_digest(TINY, {name: tensor.double() for name, tensor in checkpoint.state.items()})
    with pytest.raises(CheckpointError, match="missing"):
        generator_digest(TINY, {})


def test_canonical_tensors_and_metadata_make_the_checkpoint() -> None:
    checkpoint = replace(tiny(replace(TINY, content_box=(1, 15, 0, 16))), notes=("drawn noise",))
    found = from_canonical(checkpoint.state, to_metadata(checkpoint))
    assert_same(found, checkpoint)
    assert found.notes == ("drawn noise",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "FeatureNet"}, "the metadata name FeatureNet; wanted a Generator"),
        ({"format_version": "2"}, "format version is 2; this library reads 1"),
        ({"config": "{}"}, "no generator configuration"),
        ({"config": "["}, "no generator configuration"),
        ({"config": '{"resolution": 9, "channels": [1]}'}, "no generator configuration"),
        ({"config": '{"resolution": 8.0, "channels": [1, 1]}'}, "no generator configuration"),
        ({"config": '{"resolution": 8, "channels": [1, 1], "constant": 4}'}, "no generator configuration"),
        ({"notes": "3"}, "no JSON list of sentences"),
        ({"notes": "{"}, "no JSON list"),
        ({"digest": "0" * 64}, "changed or damaged"),
    ],
)
def test_metadata_that_do_not_belong_are_refused(changes: dict[str, str], message: str) -> None:
    checkpoint = tiny()
    with pytest.raises(CheckpointError, match=message):
        from_canonical(checkpoint.state, to_metadata(checkpoint) | changes)


def test_a_changed_canonical_tensor_is_noticed() -> None:
    checkpoint = tiny()
    metadata = to_metadata(checkpoint)
    checkpoint.state["synthesis.const"][0, 0, 0] += 1
    with pytest.raises(CheckpointError, match="changed or damaged"):
        from_canonical(checkpoint.state, metadata)
    with pytest.raises(CheckpointError, match=r"surprise +\[1\] +nothing"):
        from_canonical(checkpoint.state | {"surprise": torch.zeros(1)}, metadata)


def test_building_a_generator_takes_no_global_random_numbers() -> None:
    before = torch.get_rng_state()
    generator = build_generator(tiny())
    assert torch.equal(torch.get_rng_state(), before)
    assert not generator.training
    assert all(parameter.requires_grad for parameter in generator.parameters())
