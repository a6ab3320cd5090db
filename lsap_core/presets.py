"""The methods by their published names, as settings of the one algorithm."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lsap_core.errors import ConfigError
from lsap_core.inversion.by_optimization import OptimizationSettings


@dataclass(frozen=True)
class Method:
    """A named way to embed images.

    Attributes:
        name: what configurations call it.
        title: what the paper calls it.
        settings: its constants at full scale.
        base: name of the method that it adds a term to, or None.
    """

    name: str
    title: str
    settings: OptimizationSettings
    base: str | None = None


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("stylegan2_w", "StyleGAN2-W", OptimizationSettings(space="w")),
        Method("stylegan2_w_plus", "StyleGAN2-W+", OptimizationSettings(space="w_plus")),
        Method("lsap_o_w", "LSAP_O-W", OptimizationSettings(space="w", sncd_weight=5.0), base="stylegan2_w"),
        Method(
            "lsap_o_w_plus",
            "LSAP_O-W+",
            OptimizationSettings(space="w_plus", sncd_weight=20.0),
            base="stylegan2_w_plus",
        ),
        # Not in the paper: does SNCD add anything that plain shrinking toward the mean does not?
        Method(
            "l2_w_plus",
            "W+ with L2 to the mean code",
            OptimizationSettings(space="w_plus", mean_code_weight=1.0),
            base="stylegan2_w_plus",
        ),
    )
}


def method(name: str, **changes: object) -> Method:
    """The named method, with some of its settings changed.

    Raises:
        ConfigError: no such method, or no such setting.

    Example:
        >>> method("lsap_o_w").settings.sncd_weight
        5.0
        >>> method("lsap_o_w", num_steps=100).settings.num_steps
        100
    """
    if name not in METHODS:
        raise ConfigError(f'method "{name}" is not known; wanted one of {", ".join(METHODS)}')
    chosen = METHODS[name]
    try:
        return replace(chosen, settings=replace(chosen.settings, **changes))  # type: ignore[arg-type]
    except TypeError as error:
        raise ConfigError(f"method {name}: {error}") from error
