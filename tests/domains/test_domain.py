"""Domains read from files: what is in them, which settings win, and what is refused by name."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from domains.domain import Domain, builtin_domains, load_domain
from lsap_core.errors import ConfigError
from lsap_core.inversion.by_encoder import EncoderSettings
from lsap_core.inversion.by_optimization import OptimizationSettings
from lsap_core.presets import METHODS, REFINER_TRAININGS, TRAININGS
from tasks.weights.generators import load_generator
from tasks.weights.networks import NetworkChoice

KINDS = (OptimizationSettings, EncoderSettings)
FROM_ENCODER = "lsap_o_w_plus_from_lsap_e"
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
    optimizations = {name: each for name, each in settings.items() if isinstance(each, OptimizationSettings)}
    assert {name: each.sncd_weight for name, each in optimizations.items()} == {
        "stylegan2_w": 0,
        "stylegan2_w_plus": 0,
        "lsap_o_w": 5,
        "lsap_o_w_plus": 20,
        "l2_w_plus": 0,
        "lsap_o_w_plus_from_lsap_e": 20,
        "stylegan2_w_plus_fast": 0,
        "lsap_o_w_plus_fast": 20,
    }
    shorter = {name: each.num_steps for name, each in optimizations.items() if each.num_steps != 1000}
    assert shorter == {"lsap_o_w_plus_from_lsap_e": 200, "stylegan2_w_plus_fast": 100, "lsap_o_w_plus_fast": 100}
    assert {(each.learning_rate, each.lpips_weight) for each in optimizations.values()} == {(0.1, 1)}
    passes = {name: each.num_passes for name, each in settings.items() if isinstance(each, EncoderSettings)}
    assert passes == {"psp": 1, "e4e": 1, "lsap_e": 1, "restyle_psp": 5, "restyle_e4e": 5}


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
        ({"methods": {"all": {"steps": 5}}}, r"has no setting .steps.; did you mean .num_steps.\? it has .*num_steps"),
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
        (
            {"shard_rows": "many"},
            "own.yaml does not describe a domain: shard_rows: 'many': Input should be a valid int",
        ),
        ({"batch_size": 0}, "batch_size: 0: Input should be greater than or equal to 1"),
        ({"generator": 5}, "generator: 5: Input should be a valid string"),
        ({"attributes": "slant"}, "attributes: 'slant': Input should be a valid tuple"),
        ({"weights": {"e4e": {"fil": "a"}}}, "weights.e4e.file: Field required; weights.e4e.fil: 'a': Unexpected"),
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
    assert refused(str(path)).startswith((f"{path} does not describe a domain", f"{path} is not YAML"))


def test_an_unknown_method_or_setting_of_a_run_is_refused_by_name() -> None:
    domain = Domain(**OWN)
    with pytest.raises(
        ConfigError, match=r'method "lsap" is not known; did you mean "lsap_e"\? wanted one of stylegan2_w'
    ):
        domain.method("lsap")
    with pytest.raises(ConfigError, match="method lsap_o_w has no setting 'nums_steps'"):
        domain.method("lsap_o_w", {"nums_steps": 3})


def test_every_setting_can_be_set(tmp_path: Path) -> None:
    defaults = {kind: {each.name: getattr(kind(), each.name) for each in fields(kind)} for kind in KINDS}
    values = {**defaults[OptimizationSettings], **defaults[EncoderSettings]}
    del values["start"]  # a method without an encoder cannot take that of the others
    domain = load_domain(write(tmp_path, methods={"all": values}))
    for name in METHODS:
        settings = domain.method(name).settings
        assert settings == replace(type(settings)(), start=settings.start) if name == FROM_ENCODER else type(settings)()


# --- encoders -----------------------------------------------------------------------------------------


def test_what_is_for_all_methods_is_for_those_that_have_it(tmp_path: Path) -> None:
    """An encoder takes no steps and an optimization no passes; a setting that nobody has is a mistake."""
    for_all = {"num_steps": 7, "num_passes": 3, "keep_noise": "float16"}
    domain = load_domain(write(tmp_path, methods={"all": for_all}))
    noise = [domain.method(name).noise for name in ("lsap_o_w", "e4e")]
    assert noise == ["float16", "constant"] and domain.method("lsap_o_w", {"keep_noise": "none"}).noise == "constant"
    with pytest.raises(ConfigError, match="method e4e has no setting 'keep_noise'"):
        domain.method("e4e", {"keep_noise": "none"})
    assert domain.method("lsap_o_w").settings.num_steps == 7
    assert domain.method("restyle_e4e").settings == EncoderSettings(num_passes=3)
    assert domain.method("restyle_e4e", shared={"num_steps": 9, "num_refinements": 4}).settings.num_passes == 4
    assert domain.method("lsap_o_w", {"num_steps": 5}, shared={"num_steps": 9}).settings.num_steps == 5
    with pytest.raises(ConfigError, match=r"method e4e has no setting 'num_steps'; .*it has encoder, num_passes"):
        domain.method("e4e", {"num_steps": 9})
    with pytest.raises(ConfigError, match="method e4e has no setting 'steps'"):
        domain.method("e4e", shared={"steps": 9})


def test_encoders_start_at_the_file_and_give_methods(tmp_path: Path) -> None:
    places = {"e4e": "weights/e4e.pt", "seed_1": "s3://bucket/1.safetensors", "seed_2": "/data/2.safetensors"}
    domain = load_domain(write(tmp_path, encoders=places, methods={"seed_1": {"num_refinements": 2}}))
    assert domain.encoders == {**places, "e4e": str(tmp_path / "weights" / "e4e.pt")}
    own = domain.method("seed_1")
    assert (own.name, own.title, own.encoder, own.base) == ("seed_1", "seed_1", "seed_1", None)
    assert own.settings == EncoderSettings(num_passes=2)
    assert domain.method("e4e") == METHODS["e4e"]
    changed = domain.with_encoders({"seed_2": "other.pt", "seed_3": "3.pt"})
    assert changed.encoders == {**domain.encoders, "seed_2": "other.pt", "seed_3": "3.pt"}
    assert changed.method("seed_3").encoder == "seed_3"
    with pytest.raises(ConfigError, match=r'"seed_3" is not known; .*wanted one of .*restyle_e4e, seed_1, seed_2'):
        domain.method("seed_3")


def test_any_optimization_can_start_at_an_encoder() -> None:
    domain = Domain(**OWN, encoders={"e4e": "e4e.pt"})
    chosen = domain.method("stylegan2_w", {"start": "encoder", "encoder": "e4e", "num_steps": 20})
    assert (chosen.settings.start, chosen.encoder, chosen.settings.num_steps) == ("encoder", "e4e", 20)
    with pytest.raises(ConfigError, match='stylegan2_w: start is "encoder" and no encoder is named'):
        domain.method("stylegan2_w", {"start": "encoder"})
    with pytest.raises(ConfigError, match='start is "mean", so its encoder e4e has nothing to do'):
        domain.method("stylegan2_w", {"encoder": "e4e"})
    with pytest.raises(ConfigError, match='start is "middle"; wanted one of mean, encoder'):
        domain.method("stylegan2_w", {"start": "middle"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encoders": {"lsap_o_w": "a.pt"}}, 'an encoder is named "lsap_o_w", which is a method of another kind'),
        ({"encoders": {"all": "a.pt"}}, "encoders has 'all': 'a.pt'; wanted names"),
        ({"encoders": {"e4e": 5}}, "encoders.e4e: 5: Input should be a valid string"),
        ({"encoders": ["e4e.pt"]}, "own.yaml does not describe a domain"),
        ({"encoders": {"mine": "a.pt"}, "methods": {"yours": {}}}, 'settings for "yours"; methods are .*mine or "all"'),
        ({"encoders": {"mine": "a.pt"}, "methods": {"mine": {"num_steps": 3}}}, "method mine has no setting"),
        ({"methods": {"e4e": {"num_passes": 0}}}, "num_passes is 0; wanted at least 1"),
        ({"content_box": 5}, r"content_box is 5; wanted \[top, bottom, left, right\]"),
        ({"content_box": [0, 10, 0]}, r"content_box is \[0, 10, 0\]"),
        ({"content_box": [0, 10, 0, 9.5]}, "content_box is"),
        ({"content_box": [10, 10, 0, 9]}, "content_box is"),
        ({"content_box": [-1, 10, 0, 9]}, "content_box is"),
    ],
)
def test_wrong_encoders_and_boxes_are_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_domain(write(tmp_path, **values))


def test_a_content_box_is_that_of_the_generator(tmp_path: Path) -> None:
    domain = load_domain(write(tmp_path, content_box=[4, 28, 0, 32]))
    assert domain.content_box == (4, 28, 0, 32)
    digits = load_domain("digits").generator
    assert digits is not None
    plain, boxed = load_generator(digits), load_generator(digits, content_box=domain.content_box)
    assert (plain.config.content_box, boxed.config.content_box) == (None, (4, 28, 0, 32))
    assert boxed.generator.config == boxed.config and boxed.digest != plain.digest
    with pytest.raises(ConfigError, match="lies outside 32 pixels"):
        load_generator(digits, content_box=(0, 33, 0, 32))


# --- trainings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", builtin_domains())
def test_a_built_in_domain_trains_every_kind_of_encoder(name: str) -> None:
    presets = load_domain(name).encoder_training
    for known in TRAININGS:
        assert presets.method(known).name == known


def test_at_full_scale_encoders_are_trained_as_published() -> None:
    presets = load_domain("full_scale").encoder_training
    assert {name: presets.method(name) for name in TRAININGS} == TRAININGS
    assert (presets.backbone, presets.augmentation, presets.perceptual) == ("ir_se_50", "flip", "lpips-alex")
    assert presets.identity is None  # faces or not: the run has to say


def test_settings_of_a_training_win_as_those_of_a_method_do(tmp_path: Path) -> None:
    methods = {"all": {"batch_size": "16", "learning_rate": 1}, "e4e": {"batch_size": 4, "progressive_start": None}}
    presets = load_domain(write(tmp_path, encoder_training={"backbone": "small", "methods": methods})).encoder_training
    found = presets.method("lsap_e", {"sncd_weight": 1}).settings
    assert (found.batch_size, found.learning_rate, found.sncd_weight) == (16, 1.0, 1.0)
    assert (presets.method("e4e").settings.batch_size, presets.method("e4e").settings.progressive_start) == (4, None)


@pytest.mark.parametrize("name", builtin_domains())
def test_a_built_in_domain_trains_networks_of_refiners(name: str) -> None:
    trained = load_domain(name).training_of_refiner("hfgi")
    assert trained.title == "HFGI"
    if name != "digits":
        assert trained == REFINER_TRAININGS["hfgi"], "as published"


def test_cars_train_the_variant_of_style_feature_editor_for_cars() -> None:
    settings = load_domain("car").training_of_refiner("sfe").settings
    assert (settings.has_finer_shift, settings.identity_weight) == (True, 0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sfe": {"edits": {"age": 3}}}, "edits is .*age.*; wanted lists of numbers by name"),
        ({"pti": {}}, 'networks of refiner "pti" cannot be trained; wanted those of hfgi'),
        ({"hfgi": {"lr": 1}}, "training of hfgi has no setting 'lr'; it has .*learning_rate"),
        ({"hfgi": {"num_steps": "many"}}, "num_steps is 'many'; wanted a whole number"),
        ({"hfgi": {"starts_without_effect": 1}}, "starts_without_effect is 1; wanted true or false"),
        ({"hfgi": {"widths": "large"}}, 'widths is "large"; wanted one of published, small'),
    ],
)
def test_a_wrong_training_of_a_refiner_is_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    assert re.search(message, refused(write(tmp_path, refiner_training=values)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"methods": {"hfgi": {}}}, 'trains "hfgi"; what can be trained is psp'),
        ({"methods": {"e4e": {"lr": 1}}}, "training e4e has no setting 'lr'; it has .*learning_rate"),
        ({"methods": {"all": {"num_steps": "many"}}}, "num_steps is 'many'; wanted a whole number"),
        ({"methods": {"all": {"is_iterative": 1}}}, "is_iterative is 1; wanted true or false"),
        ({"methods": {"e4e": {"progressive_start": 0.5}}}, "progressive_start is 0.5; wanted a whole number"),
        ({"methods": {"psp": {"progressive_start": 5}}}, "progressive_start"),
        ({"backbones": "small"}, "own.yaml does not describe a domain: .*backbones"),
        ({"methods": 3}, "own.yaml does not describe a domain"),
    ],
)
def test_a_wrong_training_is_refused_by_what_is_wrong(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    assert re.search(message, refused(write(tmp_path, encoder_training=values)))
