"""Edits as a run asks for them: read, refused, described, built."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lsap_core.editing import Direction, along, along_component, fit_pca, style_shift
from lsap_core.errors import CheckpointError, ConfigError, ShapeError
from lsap_core.generators.config import GeneratorConfig
from tasks.editing.spec import EditSpec, EqualEffect, build_edit, parse_edit
from tasks.weights.directions import load_components, save_components, save_direction

CONFIG = GeneratorConfig(32, (8, 8, 8, 8), z_dim=6, w_dim=8, image_channels=1)
K, D = CONFIG.num_ws, CONFIG.w_dim
OURS = "9f" * 32


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


DIRECTION = Direction("slant", numbers(1, D), OURS)
STORED = {f"{name}.png": numbers(K, D, seed=10 + index) for index, name in enumerate("abc")}


@pytest.fixture
def directions(tmp_path: Path) -> dict[str, str]:
    """As a domain has them."""
    save_direction(str(tmp_path / "slant.safetensors"), DIRECTION)
    save_components(
        str(tmp_path / "pca.safetensors"), fit_pca([numbers(50, D, seed=1)], num_components=3, generator=OURS)
    )
    return {"slant": str(tmp_path / "slant.safetensors"), "pca": str(tmp_path / "pca.safetensors")}


def codes_of(image_ids: Sequence[str]) -> Tensor:
    return torch.stack([STORED[image_id] for image_id in image_ids])


def build(spec: EditSpec, **changes: Any) -> Any:
    given = {"config": CONFIG, "generator_digest": OURS, "codes_of": codes_of, "image_ids": ["a.png", "b.png"]}
    return build_edit(spec, **{**given, **changes})


def test_a_direction_by_name_or_path(directions: dict[str, str]) -> None:
    codes = numbers(2, K, D, seed=2)
    named = parse_edit("lean", {"direction": "slant", "strength": 3, "layers": [0, 4]}, directions)
    by_path = parse_edit("lean", {"direction": directions["slant"], "strength": "3.0", "layers": [0, 4]}, {})
    expected = along(DIRECTION, 3.0, layers=(0, 4))(codes)
    assert torch.equal(build(named)(codes), expected) and torch.equal(build(by_path)(codes), expected)
    assert named.digest == by_path.digest
    assert torch.equal(build(named, strength=-1.0)(codes), along(DIRECTION, -1.0, layers=(0, 4))(codes))
    assert build(named).describe()["digest"] == DIRECTION.digest


def test_components_in_both_modes(directions: dict[str, str]) -> None:
    codes = numbers(2, K, D, seed=2)
    components = load_components(directions["pca"], config=CONFIG, generator_digest=OURS)
    document = {"components": "pca", "component": 1, "layers": [0, 5], "strength": 2}
    absolute = build(parse_edit("c", document, directions))
    assert torch.equal(absolute(codes), along_component(components, 1, 2.0, layers=(0, 5))(codes))
    offset = build(parse_edit("c", {**document, "mode": "offset"}, directions))
    assert torch.equal(offset(codes), along_component(components, 1, 2.0, layers=(0, 5), mode="offset")(codes))
    assert not torch.equal(absolute(codes), offset(codes))


def test_one_of_many_directions_by_name(tmp_path: Path) -> None:
    torch.save({"up": numbers(1, D), "down": -numbers(1, D)}, tmp_path / "many.pt")
    codes, many = numbers(2, K, D, seed=2), {"many": str(tmp_path / "many.pt")}
    by_name = parse_edit("e", {"direction": "many#down", "strength": 1}, many)
    by_path = parse_edit("e", {"direction": f"{tmp_path}/many.pt#down", "strength": 1}, {})
    other = parse_edit("e", {"direction": "many#up", "strength": 1}, many)
    assert torch.equal(build(by_name)(codes), along(Direction("down", -numbers(1, D)), 1.0)(codes))
    assert by_name.digest == by_path.digest != other.digest
    with pytest.raises(CheckpointError, match="choose one, as FILE#NAME"):
        build(parse_edit("e", {"direction": "many", "strength": 1}, many))


def test_channels_and_directions_in_s(tmp_path: Path) -> None:
    codes = numbers(2, K, D, seed=2)
    torch.save([numbers(8, seed=at) for at in range(11)], tmp_path / "styles.pt")
    channel = parse_edit("c", {"style_channel": [6, 5], "strength": -3}, {})
    shift = style_shift(build(channel), codes)
    assert list(shift) == [6] and shift[6].nonzero().tolist() == [[0, 5]] and shift[6][0, 5] == -3
    assert channel.digest != parse_edit("c", {"style_channel": [5, 6], "strength": -3}, {}).digest
    document = {"direction": str(tmp_path / "styles.pt"), "strength": 2}
    both = parse_edit("both", {"sequence": [document, {"style_channel": [6, 5], "strength": -3}]}, {})
    assert len(style_shift(build(both), codes)) == 11 and torch.equal(build(both)(codes), codes)
    with pytest.raises(ConfigError, match="direction in S, and layers are rows of W"):
        build(parse_edit("c", {**document, "layers": [0, 4]}, {}))
    for wrong in (6, [6], [6, -1], [6, "5"], [6, 1.5], [True, 1]):
        with pytest.raises(ConfigError, match=r"style_channel is .*wanted \[layer, channel\]"):
            parse_edit("c", {"style_channel": wrong, "strength": 1}, {})
    with pytest.raises(ConfigError, match="channel 8 of layer 0"):
        build(parse_edit("c", {"style_channel": [0, 8], "strength": 1}, {}))


def test_equal_effect_waits_for_its_strength(directions: dict[str, str]) -> None:
    document = {"direction": "slant", "equal_effect": {"attribute": "slant", "change": 1.0}}
    spec = parse_edit("lean", document, directions)
    assert spec.equal_effect == EqualEffect("slant", 1.0) and spec.strength is None
    with pytest.raises(ConfigError, match=r'"lean" is calibrated to equal effect, .*: set strength'):
        build(spec)
    codes = numbers(2, K, D, seed=2)
    assert torch.equal(build(spec, strength=0.5)(codes), along(DIRECTION, 0.5)(codes))


def test_a_sequence_is_cumulative(directions: dict[str, str]) -> None:
    codes = numbers(2, K, D, seed=2)
    parts = [{"direction": "slant", "strength": 1}, {"mix_with": "c.png", "layers": [4, 8]}]
    spec = parse_edit("both", {"sequence": parts}, directions)
    expected = along(DIRECTION, 1.0)(codes)
    expected[:, 4:] = STORED["c.png"][4:]
    assert torch.equal(build(spec)(codes), expected)
    assert spec.needs_images and not spec.parts[0].needs_images
    assert parse_edit("both", {"sequence": parts[::-1]}, directions).digest != spec.digest
    with pytest.raises(ConfigError, match="a sequence, which has no strength"):
        build(spec, strength=1.0)


def test_mixing_and_interpolation_read_other_codes() -> None:
    codes = torch.stack([STORED["a.png"], STORED["b.png"]])
    mixed = build(parse_edit("m", {"mix_with": "c.png", "layers": [2, 99]}, {}))(codes)
    assert torch.equal(mixed[:, 2:], STORED["c.png"][2:].expand(2, -1, -1)) and torch.equal(mixed[:, :2], codes[:, :2])
    to_one = build(parse_edit("i", {"interpolate_to": "c.png", "weight": 0.5}, {}))(codes)
    torch.testing.assert_close(to_one, (codes + STORED["c.png"]) / 2)
    pairs = {"a.png": "b.png", "b.png": "c.png"}
    spec = parse_edit("i", {"interpolate_to": pairs, "weight": 1}, {})
    assert torch.equal(build(spec)(codes), codes_of(["b.png", "c.png"]))
    assert torch.equal(build(spec, image_ids=["b.png", "a.png"])(codes), codes_of(["c.png", "b.png"]))
    with pytest.raises(ConfigError, match=r'"i" names no image to go to from c\.png'):
        build(spec, image_ids=["c.png"])
    with pytest.raises(ConfigError, match="leads to another image and has no strength"):
        build(spec, strength=1.0)


def test_the_digest_names_everything_that_decides_and_nothing_else(directions: dict[str, str]) -> None:
    document: dict[str, Any] = {"direction": "slant", "strength": 3}
    spec = parse_edit("lean", document, directions)
    assert parse_edit("other_name", {"strength": 3.0, "direction": "slant"}, directions).digest == spec.digest
    other = str(Path(directions["slant"]).with_name("other.safetensors"))
    save_direction(other, Direction("slant", numbers(1, D, seed=5), OURS))
    changed = [
        {**document, "strength": 2},
        {**document, "layers": [0, 4]},
        {**document, "direction": other},
        {"direction": "slant", "equal_effect": {"attribute": "slant", "change": 3}},
        {"direction": "slant", "equal_effect": {"attribute": "stroke_width", "change": 3}},
        {"sequence": [document]},
        {"components": "pca", "component": 0, "strength": 3},
        {"components": "pca", "component": 1, "strength": 3},
        {"components": "pca", "component": 0, "strength": 3, "mode": "offset"},
        {"interpolate_to": "a.png", "weight": 0.5},
        {"interpolate_to": "b.png", "weight": 0.5},
        {"interpolate_to": {"b.png": "a.png"}, "weight": 0.5},
        {"mix_with": "a.png", "layers": [0, 4]},
    ]
    specs = [parse_edit("e", one, directions) for one in changed]
    assert len({spec.digest, *(one.digest for one in specs)}) == 1 + len(changed)
    for one in (spec, *specs):
        assert json.loads(json.dumps(one.describe())) == one.describe()
        assert pickle.loads(pickle.dumps(one)) == one  # as it reaches workers
    told = spec.describe()
    assert (told["file"]["asked"], told["strength"], told["digest"]) == ("slant", 3.0, spec.digest)


def test_a_file_that_has_changed_since_is_refused(directions: dict[str, str]) -> None:
    spec = parse_edit("lean", {"direction": "slant", "strength": 3}, directions)
    Path(directions["slant"]).unlink()
    save_direction(directions["slant"], Direction("slant", numbers(1, D, seed=5), OURS))
    with pytest.raises(CheckpointError, match='has changed since edit "lean" was planned'):
        build(spec)


def test_a_direction_of_another_generator_is_refused_unless_asked_for(directions: dict[str, str]) -> None:
    document = {"direction": "slant", "strength": 3}
    with pytest.raises(CheckpointError, match="found on generator 9f9f"):
        build(parse_edit("lean", document, directions), generator_digest="4a" * 32)
    spec = parse_edit("lean", {**document, "any_generator": True}, directions)
    assert build(spec, generator_digest="4a" * 32).describe()["generator"] == OURS
    with pytest.raises(ShapeError, match="wants width 512"):
        build(spec, config=GeneratorConfig.config_f(256))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("slant", "'slant' is no edit; wanted a mapping with exactly one of direction, components, sequence"),
        ({"strength": 3}, "wanted a mapping with exactly one of"),
        ({"direction": "slant", "components": "pca", "strength": 1}, "exactly one of"),
        ({"direction": "slant", "strength": 3, "factor": 2}, "there is no key factor; beside direction"),
        ({"direction": "smile", "strength": 3}, 'direction "smile" is not known; wanted slant, pca, or a path'),
        ({"direction": 3, "strength": 3}, "the file is 3"),
        ({"direction": "slant"}, "both strength and equal_effect, or neither"),
        ({"direction": "slant", "strength": 1, "equal_effect": {}}, "both strength and equal_effect"),
        ({"direction": "slant", "strength": "far"}, "strength is 'far'; wanted a number"),
        ({"direction": "slant", "strength": True}, "strength is True"),
        ({"direction": "slant", "strength": 1, "layers": [5, 3]}, r"layers is \[5, 3\]; wanted \[first, end\]"),
        ({"direction": "slant", "strength": 1, "any_generator": "no"}, "any_generator is 'no'; wanted true or false"),
        ({"direction": "slant", "equal_effect": {"attribute": "slant"}}, "wanted {attribute: NAME, change: NUMBER}"),
        ({"direction": "slant", "equal_effect": {"attribute": "slant", "change": 0}}, "change is 0"),
        ({"components": "pca", "strength": 1}, "component is None; wanted a number from 0"),
        ({"components": "pca", "component": 0, "strength": 1, "mode": "relative"}, "mode is 'relative'"),
        ({"sequence": []}, r"sequence is \[\]"),
        ({"sequence": [{"direction": "slant"}]}, "or neither"),
        (
            {"sequence": [{"direction": "slant", "equal_effect": {"attribute": "slant", "change": 1}}]},
            "is calibrated or a sequence itself",
        ),
        ({"mix_with": "a.png"}, "beside mix_with it needs layers"),
        ({"mix_with": {"a.png": "b.png"}, "layers": [0, 1]}, "wanted an image id$"),
        ({"interpolate_to": "a.png"}, "beside interpolate_to it needs weight"),
        ({"interpolate_to": {}, "weight": 0.5}, "or a mapping of image ids"),
    ],
    ids=str,
)
def test_what_describes_no_edit_is_refused(document: Any, message: str, directions: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=f'edit "lean": .*{message}'):
        parse_edit("lean", document, directions)


def test_a_missing_file_and_an_unusable_name_are_refused(directions: dict[str, str]) -> None:
    with pytest.raises(CheckpointError, match=r'edit "age": .*age\.pt does not exist'):
        parse_edit("age", {"direction": "nowhere/age.pt", "strength": 1}, directions)
    for name in ("", "a/b", "all of it", 3):
        with pytest.raises(ConfigError, match="has no usable name"):
            parse_edit(name, {"direction": "slant", "strength": 1}, directions)  # type: ignore[arg-type]
