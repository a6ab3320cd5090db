"""The methods by their published names."""

from dataclasses import replace

import pytest

from lsap_core.errors import ConfigError
from lsap_core.presets import METHODS, method


def test_methods_have_the_titles_of_the_paper() -> None:
    assert {name: each.title for name, each in METHODS.items()} == {
        "stylegan2_w": "StyleGAN2-W",
        "stylegan2_w_plus": "StyleGAN2-W+",
        "lsap_o_w": "LSAP_O-W",
        "lsap_o_w_plus": "LSAP_O-W+",
        "l2_w_plus": "W+ with L2 to the mean code",
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
