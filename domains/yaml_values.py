"""Values that others have written, in YAML or as parameters of a deployment: plain, and no more than anybody needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date
from typing import Any

import yaml

from lsap_core.errors import ConfigError

MAX_DEPTH = 50
"""Lists and mappings in each other; aliases count as what they stand for."""
MAX_VALUES = 50_000
MAX_BYTES = 4 * 2**20
"""Of a run or domain file; the reader takes about a second for each."""
MAX_TEXT = 4096
"""Characters, as the longest path has."""
MAX_BITS = 1000
"""Of a whole number: as many as a floating-point number can stand for."""
LARGEST_INTEGER = 2**63 - 1
LARGEST_FLOAT = 3.4028234e38
"""Of 64 bits, as seeds and sizes are kept; and of float32, in which networks count."""
_SHOWN = 200


class _Loader(yaml.SafeLoader):
    """The safe loader, which also knows how much every node stands for before it builds anything of it.

    Nine lines of aliases can stand for a thousand million values, and a value can contain itself.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._number = 0
        self._sizes: dict[int, tuple[int, int]] = {}  # of finished nodes: values and depth, aliases included

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._sizes:
                raise ConfigError(
                    "an alias stands for a value that contains the alias itself, which is not read: take it out"
                )
            return node
        self._depth += 1
        self._number += 1
        _refuse_excess(self._number, self._depth, "it holds")
        node = super().compose_node(parent, index)
        self._depth -= 1
        inner = [self._sizes[id(child)] for child in _children(node)]
        size, depth = 1 + sum(one[0] for one in inner), 1 + max((one[1] for one in inner), default=0)
        _refuse_excess(size, depth, "its aliases stand for")
        self._sizes[id(node)] = size, depth
        return node


def _children(node: yaml.Node | None) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _refuse_excess(number: int, depth: int, what: str) -> None:
    if number > MAX_VALUES or depth > MAX_DEPTH:
        found = (
            f"more than {MAX_VALUES:,} values" if number > MAX_VALUES else f"values more than {MAX_DEPTH} levels deep"
        )
        raise ConfigError(f"{what} {found}, which are not read: say less, or write lists of images as a manifest")


def read_yaml(text: str | bytes, place: str) -> Any:
    """The plain values of a YAML text, each on its own: aliases are written out.

    Args:
        text: the file or the value; bytes have to be UTF-8.
        place: what it is, for the message.

    Raises:
        ConfigError: it is no YAML, or holds what `checked_values` refuses.
    """
    try:
        document = text.decode() if isinstance(text, bytes) else text
        loader = _Loader(document)
        try:
            values = loader.get_single_data()
        finally:
            loader.dispose()
    except ConfigError as error:
        raise ConfigError(f"{place} cannot be used: {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{place} is not YAML: {shown(' '.join(str(error).split()), quoted=False)}") from error
    except Exception as error:  # what int, float, datetime and the like say to a value of that kind
        told = str(error).partition("; use ")[0]
        raise ConfigError(
            f"{place} is not YAML: a value is not of its kind ({type(error).__name__}: {told})"
        ) from error
    try:
        return checked_values(values)
    except ConfigError as error:
        raise ConfigError(f"{place} cannot be used: {error}") from None


def checked_values(values: Any) -> Any:
    """The same values, each in a place of its own: text, numbers, claims, nothing, and lists and mappings of these.

    What is none of these by another kind of object is left to whoever reads it.

    Raises:
        ConfigError: too many or too deep, a key that is no text, a NUL or half a character, a number of hundreds of
            digits, bytes, a set or a date; the message names the field.
    """
    return _Check().copy(values, "", 1)


class _Check:
    """One walk over values, which counts them."""

    def __init__(self) -> None:
        self._number = 0

    def copy(self, value: Any, field: str, depth: int) -> Any:
        self._number += 1
        _refuse_excess(self._number, depth, "there are")
        if isinstance(value, Mapping):
            return {_checked_key(key, field): self.copy(of, _below(field, key), depth + 1) for key, of in value.items()}
        if isinstance(value, list | tuple):
            inner = [self.copy(of, field, depth + 1) for of in value]
            return inner if isinstance(value, list) else tuple(inner)
        _refuse_scalar(value, field)
        return value


def _below(field: str, key: Any) -> str:
    return f"{field}.{key}" if field else str(key)


def _checked_key(key: Any, field: str) -> str:
    if not isinstance(key, str):
        where = f"{shown(field, quoted=False)}: " if field else ""
        raise ConfigError(
            f"{where}the key {shown(key)} is no text; wanted names, in quotes where YAML takes them for something else"
        )
    _refuse_scalar(key, field or "a key")
    return key


def _refuse_scalar(value: Any, field: str) -> None:
    found = ""
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            found = f"text of {len(value):,} characters, more than {MAX_TEXT:,}"
        elif "\0" in value:
            found = "text with a NUL character"
        elif any("\ud800" <= character <= "\udfff" for character in value):
            found = "text with half a character (a surrogate)"
    elif isinstance(value, int) and value.bit_length() > MAX_BITS:
        found = f"a whole number of {value.bit_length():,} bits"
    elif isinstance(value, date | bytes | bytearray | set | frozenset):
        found = f"a {type(value).__name__} ({shown(value)})"
    if found:
        raise ConfigError(
            f"{shown(field, quoted=False) or 'it'}: {found}; wanted text (in quotes), a number, a list or a mapping"
        )


def finite(value: Any) -> float | None:
    """A finite number, also one in text, which YAML 1.1 takes 1e-2 for; None for what is none, a claim included.

    Example:
        >>> finite("1e-2"), finite(True), finite(10**400), finite([])
        (0.01, None, None, None)
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def shown(value: Any, *, quoted: bool = True) -> str:
    """A value as a message shows it, cut where it is long.

    Example:
        >>> shown("a"), shown(5), len(shown("a" * 1000))
        ("'a'", '5', 203)
    """
    if quoted and isinstance(value, int) and value.bit_length() > MAX_BITS:
        return f"a number of {value.bit_length():,} bits"
    text = repr(value) if quoted else str(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
