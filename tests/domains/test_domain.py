"""Domains read from files: what is in them, which settings win, and what is refused by name."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from domains.domain import Domain, builtin_domains, load_domain
from lsap_core.errors import ConfigError
from lsap_core.inversion.by_optimization import OptimizationSettings
from lsap_core.presets import METHODS
from tasks.networks import NetworkChoice
from tasks.weights import load_generator

OWN = {"name": "own", "description": "of this test", "perceptual": "lpips-vgg"}


def write(tmp_path: Path, **values: Any) -> str:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({**OWN, **values}))
    return str(path)


# --- the built-in ones --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", builtin_domains())
def test_a_built_in_domain_is_complete(name: str) -> None:
    domain = load_domain(name)
    assert domain.name == name
    NetworkChoice(domain.perceptual, domain.metric_perceptual or domain.perceptual, domain.identity, domain.judge)
    for known in METHODS:
        assert domain.method(known).name == known
    assert domain.shard_rows <= 16 or domain.shard_rows % 16 == 0


def test_the_digits_bring_a_generator_that_their_networks_fit() -> None:
    domain = load_domain("digits")
    assert domain.generator is not None and Path(domain.generator).is_absolute()
    config = load_generator(domain.generator).config
    assert (config.resolution, config.image_channels) == (32, 1)
    NetworkChoice(domain.perceptual, domain.perceptual, domain.identity, domain.judge).check(config)


def test_at_full_scale_the_constants_are_those_of_the_paper() -> None:
    domain = load_domain("full_scale")
    assert domain.generator is None
    settings = {name: domain.method(name).settings for name in METHODS}
    assert {name: each.sncd_weight for name, each in settings.items()} == {
        "stylegan2_w": 0,
        "stylegan2_w_plus": 0,
        "lsap_o_w": 5,
        "lsap_o_w_plus": 20,
        "l2_w_plus": 0,
    }
    assert {(each.num_steps, each.learning_rate, each.lpips_weight) for each in settings.values()} == {(1000, 0.1, 1)}


# --- one's own ----------------------------------------------------------------------------------------


def test_a_relative_generator_starts_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert load_domain(write(tmp_path, generator="weights/g.pt")).generator == str(tmp_path / "weights" / "g.pt")
    write(tmp_path, generator="g.pt")
    assert Path(str(load_domain("../own.yaml").generator)).resolve() == tmp_path / "g.pt"


@pytest.mark.parametrize("generator", ["/weights/g.pt", "s3://bucket/g.pt", None])
def test_any_other_generator_stays_as_it_is(tmp_path: Path, generator: str | None) -> None:
    assert load_domain(write(tmp_path, generator=generator)).generator == generator


def test_settings_of_the_run_win_over_those_of_the_method_over_those_of_all(tmp_path: Path) -> None:
    methods = {"all": {"num_steps": 10, "learning_rate": 0.3, "sncd_weight": 1.0}, "lsap_o_w": {"num_steps": 20}}
    domain = load_domain(write(tmp_path, methods={**methods, "l2_w_plus": {"sncd_weight": 2.0}}))

    def settings(name: str, **changes: Any) -> tuple[float, ...]:
        found = domain.method(name, changes).settings
        return found.num_steps, found.learning_rate, found.sncd_weight, found.mse_weight

    assert settings("stylegan2_w") == (10, 0.3, 1.0, 0.0)
    assert settings("lsap_o_w") == (20, 0.3, 1.0, 0.0)  # "all" wins over the published 5
    assert settings("l2_w_plus") == (10, 0.3, 2.0, 0.0)
    assert settings("lsap_o_w", num_steps=30, mse_weight=1.0) == (30, 0.3, 1.0, 1.0)
    assert domain.method("lsap_o_w").settings.space == "w"  # what nobody says is as published


def test_numbers_have_the_type_of_the_setting_however_they_are_written(tmp_path: Path) -> None:
    """YAML reads 1e5 as text; and 5 and 5.0 are one setting, so they have to be one method."""
    path = tmp_path / "own.yaml"
    path.write_text(
        yaml.safe_dump(OWN) + "methods: {all: {noise_weight: 1e3, learning_rate: 1, num_steps: 20.0, exploration: .5}}"
    )
    settings = load_domain(str(path)).method("lsap_o_w").settings
    found = (settings.noise_weight, settings.learning_rate, settings.num_steps, settings.exploration)
    assert found == (1000.0, 1.0, 20, 0.5)
    assert [type(value) for value in found] == [float, float, int, float]
    plain = Domain(**OWN)
    assert repr(plain.method("lsap_o_w", {"sncd_weight": 5})) == repr(plain.method("lsap_o_w"))


# --- refusals -----------------------------------------------------------------------------------------


def refused(domain: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_domain(domain)
    return str(caught.value)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    message = refused("cats")
    assert all(part in message for part in ('"cats"', "digits, full_scale", ".yaml"))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert str(tmp_path / "none.yaml") in refused(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"methods": {"lsap_o": {}}}, 'settings for "lsap_o"; methods are stylegan2_w'),
        ({"methods": {"all": {"steps": 5}}}, "has no setting 'steps'; it has .*num_steps"),
        ({"methods": {"l2_w_plus": {"lr": 5}}}, "method l2_w_plus has no setting 'lr'"),
        ({"methods": {"all": {"num_steps": "many"}}}, "num_steps is 'many'; wanted a whole number"),
        ({"methods": {"all": {"num_steps": 2.5}}}, "num_steps is 2.5; wanted a whole number"),
        ({"methods": {"all": {"num_steps": True}}}, "num_steps is True; wanted a whole number"),
        ({"methods": {"all": {"learning_rate": None}}}, "learning_rate is None; wanted a number"),
        ({"methods": {"all": {"learning_rate": float("inf")}}}, "learning_rate is inf; wanted a number"),
        ({"methods": {"all": {"learning_rate": -1}}}, "learning_rate is -1.0; wanted a positive number"),
        ({"methods": {"all": {"space": "z"}}}, 'space is "z"'),
        ({"methods": {"lsap_o_w": None}}, "own.yaml does not describe a domain"),
        ({"methods": 3}, "own.yaml does not describe a domain"),
        ({"perceptual_network": "lpips-vgg"}, "own.yaml does not describe a domain: .*perceptual_network"),
    ],
)
def test_a_wrong_file_is_refused_by_what_is_wrong(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_domain(write(tmp_path, **values))


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words", "{", "name: own\n", "\x80"])
def test_what_is_no_domain_is_refused_by_its_path(tmp_path: Path, text: str) -> None:
    path = tmp_path / "own.yml"
    path.write_bytes(text.encode("latin-1"))
    assert f"{path} does not describe a domain" in refused(str(path))


def test_an_unknown_method_or_setting_of_a_run_is_refused_by_name() -> None:
    domain = Domain(**OWN)
    with pytest.raises(ConfigError, match='method "e4e" is not known; wanted one of stylegan2_w'):
        domain.method("e4e")
    with pytest.raises(ConfigError, match="method lsap_o_w has no setting 'nums_steps'"):
        domain.method("lsap_o_w", {"nums_steps": 3})


def test_every_setting_can_be_set(tmp_path: Path) -> None:
    values = {each.name: getattr(OptimizationSettings(), each.name) for each in fields(OptimizationSettings)}
    domain = load_domain(write(tmp_path, methods={"all": values}))
    assert {domain.method(name).settings for name in METHODS} == {OptimizationSettings()}
