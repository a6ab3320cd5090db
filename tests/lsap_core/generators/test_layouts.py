"""Generators are known by their tensors, at whatever entry and under whatever prefix they stand."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from lsap_core.encoders.checkpoints.published import HEADS_OF_METHOD, HEADS_OF_TYPE
from lsap_core.encoders.config import Heads
from lsap_core.errors import CheckpointError
from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.generators.checkpoints import (
    LAYOUTS,
    CanonicalCheckpoint,
    build_generator,
    from_generator_document,
    from_nvlabs,
    read_torch,
    to_nvlabs,
    to_rosinality,
    to_rosinality_document,
)
from lsap_core.generators.checkpoints.layouts import ASSUMED, NO_MEAN

LAYOUT_STATES: dict[str, Callable[[GeneratorConfig, Mapping[str, Tensor]], dict[str, Tensor]]] = {
    "nvlabs": to_nvlabs,
    "rosinality": to_rosinality,
    "lsap": lambda config, state: dict(state),
}


def make(channels: int = 3, *, mean: bool = True, seed: int = 0) -> CanonicalCheckpoint:
    config = GeneratorConfig(16, (6, 5, 4), z_dim=3, w_dim=7, num_mapping_layers=2, image_channels=channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = Generator(config)
    if mean:
        generator.mapping.w_avg.copy_(torch.arange(7.0))
    return CanonicalCheckpoint(config, {name: tensor.detach() for name, tensor in generator.state_dict().items()})


def named(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


WRAPPINGS: dict[str, Any] = {
    "bare": lambda s: s,
    "G_ema": lambda s: {"G_ema": s},
    "g_ema": lambda s: {"g_ema": s, "g": s, "d": {"x": torch.ones(1)}, "args": None},
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "generator": lambda s: {"generator": s, "discriminator": {"b4.conv.weight": torch.ones(1)}},
    "params_ema": lambda s: {"params_ema": s, "params": s},
    "distributed": lambda s: {"g_ema": named(s, "module.")},
    "compiled": lambda s: named(s, "_orig_mod."),
    "lightning": lambda s: {"state_dict": named(s, "G_ema.") | named(s, "D."), "pytorch-lightning_version": "2"},
    "both prefixes": lambda s: {"state_dict": named(s, "module.generator.")},
    "deep": lambda s: OrderedDict(model={"nets": {"generator_ema": s, "generator": s}}),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("layout", LAYOUT_STATES)
def test_bare_weights_are_known_in_every_wrapping(layout: str, wrapping: str) -> None:
    checkpoint = make()
    document = WRAPPINGS[wrapping](LAYOUT_STATES[layout](checkpoint.config, checkpoint.state))
    if layout == "rosinality":
        document = {"latent_avg": checkpoint.state["mapping.w_avg"], **document}
    name, found = from_generator_document(document)
    assert name == layout and found.digest == checkpoint.digest
    assert any(note.startswith(ASSUMED) for note in found.notes) == (layout != "rosinality")


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("layout", LAYOUT_STATES)
def test_images_have_as_many_channels_as_the_file_says(layout: str, channels: int) -> None:
    checkpoint = make(channels)
    _, found = from_generator_document({"G_ema": LAYOUT_STATES[layout](checkpoint.config, checkpoint.state)})
    assert found.config == checkpoint.config


def test_what_was_assumed_is_told() -> None:
    checkpoint = make(mean=False)
    _, found = from_generator_document({"params_ema": to_nvlabs(checkpoint.config, checkpoint.state)})
    assert NO_MEAN in found.notes and any("--conv-clamp" in note for note in found.notes)
    _, ours = from_generator_document(to_rosinality_document(make()))
    assert ours.notes == ()


def test_one_of_several_averages_is_not_guessed() -> None:
    one, other = make(), make(seed=1)
    first, second = to_nvlabs(one.config, one.state), to_nvlabs(other.config, other.state)
    _, found = from_generator_document({"ema": first, "tuned": second})
    assert found.digest == one.digest and "the file holds tuned too" in found.notes[-1]
    with pytest.raises(CheckpointError, match=r"several generators \(a, b\)"):
        from_generator_document({"a": first, "b": second})
    with pytest.raises(CheckpointError, match="without its average g_ema"):
        from_generator_document({"g": first})


@pytest.mark.parametrize(
    ("layout", "const", "row"),
    [
        ("nvlabs", "synthesis.b4.const", r"synthesis\.b8\.conv1\.noise_const +\[8, 8\] +\[16, 8\]"),
        ("rosinality", "input.input", r"noises\.noise_2 +\[1, 1, 8, 8\] +\[1, 1, 16, 8\]"),
    ],
)
def test_noise_maps_of_another_shape_than_the_constants_are_told(layout: str, const: str, row: str) -> None:
    checkpoint = make()
    state = LAYOUT_STATES[layout](checkpoint.config, checkpoint.state)
    state[const] = torch.cat([state[const], state[const]], dim=-2)
    with pytest.raises(CheckpointError, match=f"5 tensors differ from what its sizes need(.|\n)*{row}"):
        from_generator_document({"g_ema": state})


def as_network(state: dict[str, Tensor]) -> torch.nn.Module:
    """A network of PyTorch that has these tensors."""
    network = torch.nn.Module()
    for name, tensor in state.items():
        *above, last = name.split(".")
        module = network
        for part in above:
            if part not in module._modules:
                module.add_module(part, torch.nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, torch.nn.Parameter(tensor))
    return network


@pytest.mark.parametrize("layout", LAYOUT_STATES)
@pytest.mark.parametrize("wrap", [lambda network: network, torch.nn.DataParallel, lambda network: {"g_ema": network}])
def test_a_network_that_was_saved_whole_is_read(layout: str, wrap: Any) -> None:
    checkpoint = make(mean=False)
    buffer = io.BytesIO()
    torch.save(wrap(as_network(LAYOUT_STATES[layout](checkpoint.config, checkpoint.state))), buffer)
    name, found = from_generator_document(read_torch(buffer))
    assert (name, found.digest) == (layout, checkpoint.digest)


UNREAD = [layout for layout in LAYOUTS if layout.way_out]


@pytest.mark.parametrize("layout", UNREAD, ids=lambda layout: layout.sign)
@pytest.mark.parametrize("prefix", ["", "module.", "state_dict.generator_ema."])
def test_files_of_other_programs_are_called_by_name(layout: Any, prefix: str) -> None:
    names = [layout.sign, *(f"{begin}weight" for begin in layout.others)]
    with pytest.raises(CheckpointError) as refusal:
        from_generator_document({"model": {f"{prefix}{name}": torch.zeros(2, 2) for name in names}})
    assert layout.program in str(refusal.value) and layout.way_out in str(refusal.value)


# --- classes ---------------------------------------------------------------------------------------------


def conditional(c_dim: int = 4) -> tuple[CanonicalCheckpoint, dict[str, Tensor]]:
    checkpoint = make()
    state = to_nvlabs(checkpoint.config, checkpoint.state)
    numbers = torch.Generator().manual_seed(1)
    state["mapping.embed.weight"] = torch.randn(7, c_dim, generator=numbers)
    state["mapping.embed.bias"] = torch.randn(7, generator=numbers)
    state["mapping.fc0.weight"] = torch.randn(7, 3 + 7, generator=numbers) * 100
    state["mapping.fc0.bias"] = torch.randn(7, generator=numbers) * 100
    return checkpoint, state


def published_map(state: dict[str, Tensor], z: Tensor, label: int) -> Tensor:
    """The mapping network of the StyleGAN2-ADA paper's code, as published: [z, y], then its layers."""

    def second_moment_one(x: Tensor) -> Tensor:
        return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()

    one_hot = torch.eye(state["mapping.embed.weight"].shape[1])[[label]].expand(len(z), -1)
    embed = state["mapping.embed.weight"] / one_hot.shape[1] ** 0.5
    y = second_moment_one(one_hot @ embed.T + state["mapping.embed.bias"])
    x = torch.cat([second_moment_one(z), y], dim=1)
    for layer in ("mapping.fc0", "mapping.fc1"):
        weight, bias = state[f"{layer}.weight"], state[f"{layer}.bias"]
        x = x @ (weight * 0.01 / weight.shape[1] ** 0.5).T + bias * 0.01
        x = torch.nn.functional.leaky_relu(x, 0.2) * 2**0.5
    return x


@torch.no_grad()
def test_a_label_is_part_of_the_mapping_and_of_nothing_else() -> None:
    plain, state = conditional()
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
    digests = set()
    for label in range(4):
        found = from_nvlabs(state, {"c_dim": 4}, label=label)
        generator = build_generator(found)
        torch.testing.assert_close(generator.map(z), published_map(state, z, label), atol=1e-5, rtol=1e-5)
        w = torch.randn(1, 7)
        assert torch.equal(generator.synthesize(w), build_generator(plain).synthesize(w))
        assert (found.c_dim, found.label) == (4, label) and f"label {label} of 4" in found.notes[0]
        digests.add(found.digest)
    mean = from_nvlabs(state, {"c_dim": 4})
    assert "none of its 4 classes was named (label: 0 to 3)" in mean.notes[0]
    assert len(digests | {mean.digest}) == 5


def test_labels_that_mean_nothing_are_refused() -> None:
    plain, state = conditional()
    with pytest.raises(CheckpointError, match="label 4 was asked of a generator with 4 classes: wanted 0 to 3"):
        from_nvlabs(state, label=4)
    for document in (to_nvlabs(plain.config, plain.state), to_rosinality_document(plain)):
        with pytest.raises(CheckpointError, match="without classes: leave label out"):
            from_generator_document(document, label=0)
    with pytest.raises(CheckpointError, match="embeds 4 classes"):
        from_nvlabs(state, {"c_dim": 5})
    del state["mapping.embed.bias"]
    with pytest.raises(CheckpointError, match="the layers that read its label are not all there"):
        from_nvlabs(state)


# --- what is said of it ----------------------------------------------------------------------------------


def test_the_page_on_files_of_weights_says_what_the_tables_say() -> None:
    page = (Path(__file__).parents[3] / "docs" / "weights.md").read_text()
    signs: dict[tuple[str, str], list[str]] = {}
    for layout in LAYOUTS:
        names = (layout.sign, *(f"{begin}*" for begin in layout.others))
        signs.setdefault((layout.program, layout.way_out), []).append(" with ".join(f"`{name}`" for name in names))
    for (program, way_out), known in signs.items():
        assert f"| {program} | {' or '.join(known)} | {f'no: {way_out}' if way_out else 'yes'} |" in page
    for heads in get_args(Heads):
        types = ", ".join(f"`{name}`" for name, its in HEADS_OF_TYPE.items() if its == heads)
        methods = ", ".join(f"`{name}`" for name, its in HEADS_OF_METHOD.items() if its == heads)
        assert f"| `{heads}` | {types} | {methods or '-'} |" in page
