"""The methods by their published names."""

from dataclasses import asdict, replace

import pytest

from lsap_core.errors import ConfigError
from lsap_core.inversion.by_encoder import EncoderSettings
from lsap_core.presets import (
    METHODS,
    TRAININGS,
    Method,
    current_names,
    method,
    method_of_encoder,
    recorded,
    recorded_settings,
    settings_of,
    training,
)


@pytest.mark.parametrize(
    "settings",
    [None, [], "x", {"kind": []}, {"kind": "other"}, {"num_steps": "many"}, {"unknown": 1}, {"num_steps": 10**15}],
)
def test_settings_from_an_archive_that_make_no_sense_are_refused(settings: object) -> None:
    with pytest.raises(ConfigError):
        settings_of({"settings": settings})


def test_methods_have_the_titles_of_the_paper() -> None:
    assert {name: each.title for name, each in METHODS.items()} == {
        "stylegan2_w": "StyleGAN2-W",
        "stylegan2_w_plus": "StyleGAN2-W+",
        "lsap_o_w": "LSAP_O-W",
        "lsap_o_w_plus": "LSAP_O-W+",
        "l2_w_plus": "W+ with L2 to the mean code",
        "lsap_o_w_plus_from_lsap_e": "LSAP_O-W+ from LSAP_E",
        "stylegan2_w_plus_fast": "StyleGAN2-W+, 100 steps",
        "lsap_o_w_plus_fast": "LSAP_O-W+, 100 steps",
        "psp": "pSp",
        "e4e": "e4e",
        "lsap_e": "LSAP_E",
        "restyle_psp": "ReStyle-pSp",
        "restyle_e4e": "ReStyle-e4e",
    }
    assert all(each.name == name for name, each in METHODS.items())


@pytest.mark.parametrize(("name", "space", "sncd_weight"), [("lsap_o_w", "w", 5.0), ("lsap_o_w_plus", "w_plus", 20.0)])
def test_lsap_o_is_its_base_method_plus_sncd_with_the_weight_of_the_paper(
    name: str, space: str, sncd_weight: float
) -> None:
    chosen = METHODS[name]
    assert chosen.base is not None
    base = METHODS[chosen.base]
    assert chosen.settings == replace(base.settings, sncd_weight=sncd_weight)
    assert chosen.settings.space == base.settings.space == space
    assert base.base is None and base.settings.sncd_weight == 0


def test_the_base_methods_have_the_constants_of_the_stylegan2_projector() -> None:
    for name in ("stylegan2_w", "stylegan2_w_plus"):
        settings = METHODS[name].settings
        assert (settings.num_steps, settings.learning_rate, settings.exploration) == (1000, 0.1, 0.05)
        assert (settings.lpips_weight, settings.mse_weight, settings.noise_weight) == (1.0, 0.0, 1e5)
        assert (settings.sncd_on, settings.noise_normalization) == ("clean", "unbiased")
        assert settings.downsampling == "area"


def test_the_l2_control_differs_from_its_base_in_that_penalty_alone() -> None:
    control = METHODS["l2_w_plus"]
    assert control.base == "stylegan2_w_plus"
    assert control.settings == replace(METHODS[control.base].settings, mean_code_weight=1.0)


def test_encoders_are_asked_once_and_restyle_five_times() -> None:
    found = {name: each.settings for name, each in METHODS.items() if isinstance(each.settings, EncoderSettings)}
    assert {name: settings.num_passes for name, settings in found.items()} == {
        "psp": 1,
        "e4e": 1,
        "lsap_e": 1,
        "restyle_psp": 5,
        "restyle_e4e": 5,
    }
    assert all(METHODS[name].encoder == name and settings.trace_steps == () for name, settings in found.items())


def test_the_start_from_an_encoder_changes_start_length_and_exploration_alone() -> None:
    chosen = METHODS["lsap_o_w_plus_from_lsap_e"]
    base = METHODS[chosen.base or ""]
    assert chosen.settings == replace(base.settings, start="encoder", num_steps=200, exploration=0.0)
    assert (base.name, chosen.encoder) == ("lsap_o_w_plus", "lsap_e")


@pytest.mark.parametrize("base", ["stylegan2_w_plus", "lsap_o_w_plus"])
def test_the_fast_methods_minimize_the_loss_of_their_base(base: str) -> None:
    fast, slow = METHODS[f"{base}_fast"], METHODS[base]
    assert fast.base == base and fast.settings != slow.settings
    how = ("num_steps", "exploration", "first_decay", "second_decay")
    assert replace(fast.settings, **{name: getattr(slow.settings, name) for name in how}) == slow.settings


def test_settings_that_came_later_are_recorded_where_they_are_not_the_published_ones() -> None:
    later = {"start", "first_decay", "second_decay", "stop_at_lpips"}
    assert not later & set(recorded_settings(METHODS["stylegan2_w_plus"].settings))
    fast = method("lsap_o_w_plus_fast", stop_at_lpips=0.1).settings
    values = recorded_settings(fast)
    assert later & set(values) == {"first_decay", "second_decay", "stop_at_lpips"}
    assert settings_of({"settings": values}) == fast


def test_every_base_is_a_method() -> None:
    assert {each.base for each in METHODS.values()} - {None} <= set(METHODS)


def test_an_encoder_of_ones_own_is_a_method() -> None:
    own = method_of_encoder("lsap_e_seed1")
    assert (own.name, own.title, own.encoder, own.settings) == (*["lsap_e_seed1"] * 3, EncoderSettings())
    assert method_of_encoder("restyle_psp") == METHODS["restyle_psp"]
    for name in ("lsap_o_w", "lsap_o_w_plus_from_lsap_e"):
        with pytest.raises(ConfigError, match=f'an encoder is named "{name}", which is a method of another kind'):
            method_of_encoder(name)


def test_an_encoder_is_named_by_those_who_ask_one() -> None:
    with pytest.raises(ConfigError, match='lsap_o_w: start is "encoder" and no encoder is named'):
        method("lsap_o_w", start="encoder")
    assert method("lsap_o_w", start="encoder", encoder="e4e").encoder == "e4e"
    with pytest.raises(ConfigError, match='start is "mean", so its encoder lsap_e has nothing to do'):
        method("lsap_o_w_plus_from_lsap_e", start="mean")
    with pytest.raises(ConfigError, match="no encoder is named"):
        Method("mine", "mine", EncoderSettings())


def test_settings_can_be_changed_without_changing_the_method_itself() -> None:
    changed = method("lsap_o_w", num_steps=7)
    assert changed.settings == replace(METHODS["lsap_o_w"].settings, num_steps=7)
    assert (changed.name, changed.title, changed.base) == ("lsap_o_w", "LSAP_O-W", "stylegan2_w")
    assert METHODS["lsap_o_w"].settings.num_steps == 1000
    assert method("lsap_o_w") == METHODS["lsap_o_w"]


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match='method "lsap" is not known') as caught:
        method("lsap")
    assert all(name in str(caught.value) for name in METHODS)


def test_an_unknown_setting_is_refused_with_its_name() -> None:
    with pytest.raises(ConfigError, match=r"lsap_o_w.*steps"):
        method("lsap_o_w", steps=7)


def test_a_bad_value_is_refused_with_the_name_of_its_field() -> None:
    with pytest.raises(ConfigError, match="num_steps is 0; wanted at least 1"):
        method("lsap_o_w", num_steps=0)


@pytest.mark.parametrize("name", METHODS)
def test_settings_are_read_from_what_is_recorded_of_them(name: str) -> None:
    settings = METHODS[name].settings
    assert settings_of({"settings": recorded_settings(settings)}) == settings


def test_passes_are_recorded_under_their_first_name() -> None:
    """Or digests would change, and all images of such methods be embedded again."""
    assert recorded_settings(METHODS["restyle_e4e"].settings) == {"num_refinements": 5}
    before = recorded(TRAININGS["restyle_e4e"].settings)
    assert list(before)[:3] == ["heads", "is_iterative", "num_refinements"] and before["num_refinements"] == 5
    assert current_names(before) == asdict(TRAININGS["restyle_e4e"].settings)


# --- trainings ----------------------------------------------------------------------------------------


def test_trainings_have_the_constants_of_their_papers() -> None:
    assert set(TRAININGS) <= set(METHODS)
    for name, each in TRAININGS.items():
        settings = each.settings
        assert (each.name, each.title) == (name, METHODS[name].title)
        assert (settings.l2_weight, settings.lpips_weight, settings.identity_weight) == (1.0, 0.8, 0.1)
        assert (settings.learning_rate, settings.batch_size, settings.w_norm_weight) == (1e-4, 8, 0.0)
        is_restyle = name.startswith("restyle")
        assert (settings.is_iterative, each.has_pyramid) == (is_restyle, not is_restyle)
        assert settings.num_passes == (5 if is_restyle else 1)
    by_name = {name: each.settings for name, each in TRAININGS.items()}
    terms = ("heads", "delta_weight", "adversarial_weight", "sncd_weight", "progressive_start")
    assert {name: tuple(getattr(settings, term) for term in terms) for name, settings in by_name.items()} == {
        "psp": ("direct", 0.0, 0.0, 0.0, None),
        "e4e": ("offsets", 2e-4, 0.1, 0.0, 20_000),
        "lsap_e": ("offsets", 2e-4, 0.0, 0.5, 20_000),
        "restyle_psp": ("direct", 0.0, 0.0, 0.0, None),
        "restyle_e4e": ("offsets", 2e-4, 0.1, 0.0, 20_000),
    }


def test_lsap_e_is_e4e_with_sncd_in_the_place_of_the_discriminator() -> None:
    e4e, lsap_e = TRAININGS["e4e"].settings, TRAININGS["lsap_e"].settings
    assert replace(e4e, adversarial_weight=0.0, sncd_weight=0.5) == lsap_e


def test_a_training_can_be_changed_and_refuses_what_it_has_not() -> None:
    assert training("lsap_e", sncd_weight=0.25).settings.sncd_weight == 0.25
    with pytest.raises(ConfigError, match='no training is called "hfgi"; wanted one of psp'):
        training("hfgi")
    with pytest.raises(ConfigError, match=r"training psp: .*'weight'"):
        training("psp", weight=1)
    with pytest.raises(ConfigError, match="progressive_start"):
        training("psp", progressive_start=5)
