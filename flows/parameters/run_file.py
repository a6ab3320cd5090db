"""The YAML file that describes a run: read, changed field by field, and refused by the field that is wrong."""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Self, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from domains.yaml_values import MAX_BYTES, MAX_DEPTH, checked_values, read_yaml, shown
from lsap_archive import ArchiveMismatchError, ArchiveNotFoundError, credential_in, read_file
from lsap_core.errors import ConfigError

Value = TypeVar("Value")

_TYPES = ("function-", "literal[")
_PROBLEMS = 5  # of one run file that are told
STANDARD_INPUT = "-"


class ParameterError(ValueError):
    """A configuration that cannot be run; the message names the field."""


class Parameters(BaseModel):
    """Fields of a run; unknown ones are refused, and so are credentials: a run is kept with its results."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)
    written: ClassVar[tuple[str, ...]] = ("archive", "output")
    """Fields that name a place which the run writes to, where it has them."""

    @model_validator(mode="before")
    @classmethod
    def _are_plain_and_no_credential(cls, values: Any) -> Any:
        try:
            values = checked_values(values)
        except ConfigError as error:
            raise PydanticCustomError("not_plain", "{told}", {"told": str(error)}) from None
        for field, text in _texts(values):
            if found := credential_in(text):
                message = (
                    "{field} carries {found}, which would be kept with the run and shown: give credentials to the "
                    "storage's client by the environment or a profile (docs/storage.md)"
                )
                raise PydanticCustomError("credential", message, {"field": field, "found": found})
        return cls._with_lists(values)

    @classmethod
    def _with_lists(cls, values: Any) -> Any:
        """One value needs no list where a field takes several: `methods: lsap_e`."""
        if not isinstance(values, dict):
            return values
        several = {name for name, field in cls.model_fields.items() if _takes_several(field.annotation)}
        return {
            name: [value] if name in several and isinstance(value, str | int | float) else value
            for name, value in values.items()
        }

    @classmethod
    def read(cls, path: str, changes: Iterable[str] = ()) -> Self:
        """A run from its YAML file with `key=value` changes on top (keys may have dots).

        Args:
            path: path or URL of the file, or "-" for standard input.
            changes: each to one field.

        Raises:
            ParameterError: the file or a field is wrong; the message names it.
            ArchiveError: the file's URL is none, or its storage does not answer.
        """
        values = read_values(path)
        for change in changes:
            _apply(values, change)
        return cls.of(values)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """A run from its values.

        Raises:
            ParameterError: a field is wrong; the message names it.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            told = [_problem(item, cls) for item in error.errors()]
            more = [f"and {len(told) - _PROBLEMS} more"] if len(told) > _PROBLEMS else []
            raise ParameterError("; ".join([*told[:_PROBLEMS], *more])) from error


def _takes_several(annotation: Any) -> bool:
    """Whether a field takes a list, or a list or nothing; one that takes a number too means something else."""
    kinds = [annotation, *get_args(annotation)] if get_origin(annotation) is not tuple else [annotation]
    return any(get_origin(kind) is tuple for kind in kinds) and int not in kinds


def read_values(path: str) -> dict[str, Any]:
    """What a run file says, by path or URL; "-" is what standard input has, also when it is asked for again.

    Raises:
        ParameterError: it is missing, no file, no YAML, or holds no fields.
        ArchiveError: its URL is none, or its storage does not answer.
    """
    try:
        if path == STANDARD_INPUT:
            values = read_yaml(_standard_input(), "standard input") or {}
        else:
            values = read_yaml(read_file(path, max_bytes=MAX_BYTES), path) or {}
    except ArchiveNotFoundError as error:
        found = "is a folder" if "is a folder" in str(error) else "does not exist"
        raise ParameterError(f"{path} {found}; wanted a YAML file that describes a run") from None
    except (ConfigError, ArchiveMismatchError) as error:
        raise ParameterError(str(error)) from error
    if not isinstance(values, dict):
        raise ParameterError(f"{path} holds a {type(values).__name__}; wanted fields and their values")
    return values


@functools.cache
def _standard_input() -> bytes:
    if sys.stdin is None:
        raise ConfigError("standard input is closed; wanted a YAML file that describes a run")
    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ConfigError(f"standard input has more than {MAX_BYTES} bytes; wanted a YAML file that describes a run")
    return data


def parse_changes(changes: Iterable[str]) -> dict[str, Any]:
    """What `key=value` changes say, as values by name.

    Raises:
        ParameterError: one is no change.
    """
    values: dict[str, Any] = {}
    for change in changes:
        _apply(values, change)
    return values


def _apply(values: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise ParameterError(
            f'"{shown(change, quoted=False)}" is no change; wanted key=value, such as embedding.num_steps=50'
        )
    *parents, last = key.split(".")
    if len(parents) >= MAX_DEPTH:
        raise ParameterError(f"{shown(key, quoted=False)}: a field of {len(parents) + 1} parts; wanted one of the run")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ParameterError(f"{shown(key, quoted=False)}: {parent} is a plain value and has no fields")
    try:
        values[last] = read_yaml(text, f"the value {shown(text)}")
    except ConfigError as error:
        raise ParameterError(f"{shown(key, quoted=False)}: {error}") from error


def _texts(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a run's values, names included, with the name of its field."""
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield field or "a field's name", name
            yield from _texts(inner, f"{field}.{name}" if field else str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, field)


def _problem(item: Any, model: type[BaseModel]) -> str:
    if item["type"] in ("credential", "not_plain"):
        return str(item["msg"])
    parts = [str(part) for part in item["loc"]]
    # Of a field that takes several types pydantic also says which of them it has tried.
    field = shown(".".join(part for part in parts if not part.startswith(_TYPES)), quoted=False)
    if item["type"] == "extra_forbidden":
        *parents, name = parts
        names = _fields_in(model, parents)
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
        wanted = f"; did you mean {near[0]}?" if near else f"; wanted {', '.join(names)}" if names else ""
        return f"{field}: there is no such field{wanted}"
    if item["type"] == "missing":
        return f"{field}: missing"
    found = f"{shown(item['input'])}: {item['msg'][0].lower()}{item['msg'][1:]}"
    return f"{field}: {found}" if field else found


def _fields_in(model: type[BaseModel], parents: Iterable[str]) -> list[str]:
    """The names of the fields of a part of a run; none where it is no model of its own."""
    for parent in parents:
        field = model.model_fields.get(parent)
        kinds = [] if field is None else [field.annotation, *get_args(field.annotation)]
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if len(inner) != 1:
            return []
        (model,) = inner
    return sorted(model.model_fields)


def refused(field: str, build: Callable[..., Value], *arguments: Any) -> Value:
    """What `build` returns of its arguments; what it refuses is told under the name of the field."""
    try:
        return build(*arguments)
    except ConfigError as error:
        raise ParameterError(f"{field}: {error}") from error
