"""The YAML file that describes a run: read, changed field by field, and refused by the field that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from lsap_core.errors import ConfigError

Value = TypeVar("Value")


class ParameterError(ValueError):
    """A configuration that cannot be run; the message names the field."""


class Parameters(BaseModel):
    """Fields of a run; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Run = TypeVar("Run", bound=Parameters)


def read_run_file(path: str, kind: type[Run], changes: Iterable[str] = ()) -> Run:
    """A run of a kind from its YAML file, with `key=value` changes on top (keys may have dots).

    Raises:
        ParameterError: the file or a field is wrong; the message names it.
    """
    file = Path(path)
    if not file.is_file():
        raise ParameterError(f"{path} does not exist; wanted a YAML file that describes a run")
    try:
        values = yaml.safe_load(file.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParameterError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ParameterError(f"{path} holds a {type(values).__name__}; wanted fields and their values")
    for change in changes:
        _apply(values, change)
    try:
        return kind(**values)
    except ValidationError as error:
        raise ParameterError("; ".join(_problem(item) for item in error.errors())) from error
    except TypeError as error:
        raise ParameterError(f"{path}: {error}") from error


def _apply(values: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise ParameterError(f'"{change}" is no change; wanted key=value, such as embedding.num_steps=50')
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ParameterError(f"{key}: {parent} is a plain value and has no fields")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ParameterError(f"{key}: {text!r} is not a YAML value") from error


def _problem(item: Any) -> str:
    field = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{field}: there is no such field"
    if item["type"] == "missing":
        return f"{field}: missing"
    found = f"{item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"
    return f"{field}: {found}" if field else found


def refused(field: str, build: Callable[[], Value]) -> Value:
    """What `build` returns; what it refuses is told under the name of the field."""
    try:
        return build()
    except ConfigError as error:
        raise ParameterError(f"{field}: {error}") from error
