"""The YAML file that describes a run: read, changed field by field, and refused by the field that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from lsap_archive import ArchiveNotFoundError, credential_in, read_file
from lsap_core.errors import ConfigError

Value = TypeVar("Value")


class ParameterError(ValueError):
    """A configuration that cannot be run; the message names the field."""


class Parameters(BaseModel):
    """Fields of a run; unknown ones are refused, and so are credentials: a run is kept with its results."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _carries_no_credential(cls, values: Any) -> Any:
        for field, text in _texts(values):
            if found := credential_in(text):
                message = (
                    "{field} carries {found}, which would be kept with the run and shown: give credentials to the "
                    "storage's client by the environment or a profile (docs/storage.md)"
                )
                raise PydanticCustomError("credential", message, {"field": field, "found": found})
        return values

    @classmethod
    def read(cls, path: str, changes: Iterable[str] = ()) -> Self:
        """A run from its YAML file, by path or URL, with `key=value` changes on top (keys may have dots).

        Raises:
            ParameterError: the file or a field is wrong; the message names it.
            ArchiveError: the file's URL is none, or its storage does not answer.
        """
        values = _read_values(path)
        for change in changes:
            _apply(values, change)
        try:
            return cls(**values)
        except ValidationError as error:
            raise ParameterError("; ".join(_problem(item) for item in error.errors())) from error
        except TypeError as error:
            raise ParameterError(f"{path}: {error}") from error


def _read_values(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(read_file(path).decode()) or {}
    except ArchiveNotFoundError:
        raise ParameterError(f"{path} does not exist; wanted a YAML file that describes a run") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ParameterError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ParameterError(f"{path} holds a {type(values).__name__}; wanted fields and their values")
    return values


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
    except (yaml.YAMLError, RecursionError) as error:
        raise ParameterError(f"{key}: {text!r} is not a YAML value") from error


def _texts(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a run's values, with the name of its field."""
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(inner, f"{field}.{name}" if field else str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, field)


def _problem(item: Any) -> str:
    if item["type"] == "credential":
        return str(item["msg"])
    field = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{field}: there is no such field"
    if item["type"] == "missing":
        return f"{field}: missing"
    found = f"{item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"
    return f"{field}: {found}" if field else found


def refused(field: str, build: Callable[..., Value], *arguments: Any) -> Value:
    """What `build` returns of its arguments; what it refuses is told under the name of the field."""
    try:
        return build(*arguments)
    except ConfigError as error:
        raise ParameterError(f"{field}: {error}") from error
