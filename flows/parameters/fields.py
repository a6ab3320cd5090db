"""The fields of run files, told from the models that read them: name, type, default, what it is for, an example."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from flows.parameters.examples import example_of

SETTINGS = "settings by name"
WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false"}
BEYOND_COUNTING = 2.0**53
"""Bounds of this size only keep numbers within their type."""
ANY_NAME = "NAME"


@dataclass(frozen=True)
class RunField:
    """A field of a run file, in words.

    Attributes:
        name: with dots where it is part of another field; NAME stands for a name of one's own.
        type: which values it takes.
        default: as YAML; None where the field has to be given, "" where it is nothing unless it is given.
        description: what it is for.
        example: a line of YAML.
    """

    name: str
    type: str
    default: str | None
    description: str
    example: str


def fields_of(model: type[BaseModel], within: tuple[str, ...] = ()) -> Iterator[RunField]:
    """Every field of a run, those of its parts after it.

    Args:
        model: what the run may be asked for.
        within: names of the fields that it is a part of.
    """
    for name, field in model.model_fields.items():
        parts = list(_parts(field.annotation))
        shown: Any = example_of(model, name)
        for outer in reversed((*within, name)):
            shown = {outer: shown}
        yield RunField(
            name=".".join((*within, name)),
            type=_type(field.annotation, field.metadata),
            default=None if field.is_required() else _default(field),
            description=field.description or " ".join((parts[0][0].__doc__ or "").split("\n\n")[0].split()),
            example=_yaml(shown),
        )
        for part, is_named in parts:
            yield from fields_of(part, (*within, name, ANY_NAME) if is_named else (*within, name))


def _parts(annotation: Any) -> Iterator[tuple[type[BaseModel], bool]]:
    """Models that a field holds, and whether each stands under a name of one's own."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, False
    elif get_origin(annotation) is dict:
        yield from ((part, True) for part, _ in _parts(get_args(annotation)[1]))
    elif get_origin(annotation) in (Union, UnionType):
        for kind in get_args(annotation):
            yield from _parts(kind)


def _type(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """A type in words, with the bounds that hold for it."""
    origin, kinds = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(kinds[0], [*kinds[1:], *metadata])
    if origin is Literal:
        return " | ".join(map(str, kinds))
    if origin is tuple:
        return f"{_type(kinds[0])}, or a list of such"
    if origin is dict and kinds[1] is Any:
        return SETTINGS
    if origin is dict:
        told = _type(kinds[1])
        return told if told == SETTINGS else f"{told} by name"
    if origin in (Union, UnionType):
        return " or ".join(_type(kind, metadata) for kind in kinds if kind is not NoneType)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "fields"
    return WORDS[annotation] + (_bounds(metadata) if annotation in (int, float) else "")


def _bounds(metadata: Iterable[Any]) -> str:
    """The narrowest of all bounds, in words; none that only keep a number within its type."""
    least, most, is_open = -math.inf, math.inf, False
    for one in _flat(metadata):
        for limit in (getattr(one, "ge", None), getattr(one, "gt", None)):
            if limit is not None and limit >= least:
                least, is_open = limit, getattr(one, "gt", None) is not None
        limit = getattr(one, "le", None)
        most = most if limit is None else min(most, limit)
    told = "" if least < -BEYOND_COUNTING else f" above {least:g}" if is_open else f" from {_plain(least)}"
    return told + ("" if most > BEYOND_COUNTING else f" to {_plain(most)}")


def _flat(metadata: Iterable[Any]) -> Iterator[Any]:
    for one in metadata:
        if isinstance(one, FieldInfo):
            yield from _flat(one.metadata)
        else:
            yield one


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, BaseModel) or value in ((), {}):
        return ""
    return _yaml(value)


def _yaml(value: Any) -> str:
    """A value on one line; a mapping of one field as that field."""
    if isinstance(value, dict) and len(value) == 1:
        ((name, inner),) = value.items()
        return f"{name}: {_yaml_value(inner)}"
    return _yaml_value(value)


def _yaml_value(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")
