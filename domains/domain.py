"""A domain: a generator, the networks that compare its images, and the presets of its methods."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from lsap_core.errors import ConfigError
from lsap_core.inversion.by_optimization import OptimizationSettings
from lsap_core.presets import METHODS, Method, method

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Domain:
    """What a run needs to know about a kind of images; read from a small YAML file.

    Attributes:
        name: what configurations call it.
        description: one line for people.
        generator: path or URL of the generator's weights; None when every run has to name its own.
        perceptual: network of the loss: "lpips-vgg", "lpips-alex", "lpips-squeeze" or an embedded one.
        metric_perceptual: network of the reported LPIPS; the loss's own by default.
        identity: network of the identity similarity, or None.
        judge: a network that is in no loss, for a second opinion, or None.
        methods: settings by method name that differ from the published ones; those under "all" hold for every one.
        shard_rows: images of a shard.
        batch_size: images optimized together on one device.
    """

    name: str
    description: str
    perceptual: str
    generator: str | None = None
    metric_perceptual: str | None = None
    identity: str | None = None
    judge: str | None = None
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    shard_rows: int = 512
    batch_size: int = 16

    def method(self, name: str, changes: Mapping[str, Any] | None = None) -> Method:
        """The named method with this domain's settings, and further changes on top.

        Raises:
            ConfigError: no such method, or no such setting.
        """
        known = {setting.name: setting.default for setting in fields(OptimizationSettings)}
        preset = {**self.methods.get("all", {}), **self.methods.get(name, {}), **(changes or {})}
        if unknown := sorted(set(preset) - set(known)):
            raise ConfigError(f"method {name} has no setting {unknown[0]!r}; it has {', '.join(sorted(known))}")
        return method(name, **{setting: _checked(setting, value, known[setting]) for setting, value in preset.items()})


def load_domain(name_or_path: str) -> Domain:
    """A built-in domain by name, or one's own from a YAML file; relative paths in it start at the file.

    Raises:
        ConfigError: no such domain, or a file that does not describe one.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        if name_or_path not in builtin_domains():
            raise ConfigError(
                f'domain "{name_or_path}" is not known; wanted one of {", ".join(builtin_domains())}, '
                "or the path of a .yaml file"
            )
        path = builtin_domains()[name_or_path]
    if not path.is_file():
        raise ConfigError(f"domain file {path} does not exist")
    try:
        values = yaml.safe_load(path.read_text())
        domain = Domain(**values)
        if unknown := sorted(set(domain.methods) - set(METHODS) - {"all"}):
            raise ConfigError(f'{path} has settings for "{unknown[0]}"; methods are {", ".join(METHODS)} or "all"')
        for name in METHODS:
            domain.method(name)
    except (TypeError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} does not describe a domain: {error}") from error
    if domain.generator and "://" not in domain.generator and not Path(domain.generator).is_absolute():
        values["generator"] = str(path.parent / domain.generator)
    return Domain(**values)


def _checked(setting: str, value: Any, default: Any) -> Any:
    """The value in the type of the setting's default: YAML 1.1 takes 1e-2 for text, and 5 for another than 5.0."""
    if isinstance(default, str):
        return value
    is_whole = isinstance(default, int)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or (is_whole and not number.is_integer()):
        raise ConfigError(f"{setting} is {value!r}; wanted a {'whole ' if is_whole else ''}number")
    return int(number) if is_whole else number


def builtin_domains() -> dict[str, Path]:
    """The domains that come with the package."""
    return {"digits": HERE / "digits" / "domain.yaml", "full_scale": HERE / "full_scale.yaml"}
