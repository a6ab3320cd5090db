"""What YAML can say that nobody needs: told in a sentence, within a moment, before it is built."""

from __future__ import annotations

import time

import pytest

from domains.domain import parse_domain
from domains.yaml_values import MAX_DEPTH, checked_values, finite, read_yaml, shown
from lsap_core.errors import ConfigError

DOUBLING = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{index}: &a{index} [{', '.join([f'*a{index - 1}'] * 10)}]\n" for index in range(1, 9)
)
MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{index}: &a{index} {{<<: [*a{index - 1}, *a{index - 1}], b{index}: 1}}\n" for index in range(1, 40)
)
DEEP_BY_ALIASES = "a0: &a0 [x]\n" + "".join(f"a{index}: &a{index} [*a{index - 1}]\n" for index in range(1, 300))

REFUSED = {
    "a mapping in itself": ("a: &a {b: *a}", "contains the alias itself"),
    "a list in itself": ("&a [1, *a]", "contains the alias itself"),
    "a key in itself": ("? &a {b: *a}\n: 1", "contains the alias itself"),
    "aliases that multiply": (DOUBLING, "its aliases stand for more than 50,000 values"),
    "merges that multiply": (MERGED, "its aliases stand for"),
    "aliases that pile up": (DEEP_BY_ALIASES, "levels deep"),
    "lists in lists": ("[" * 20_000, "levels deep"),
    "closed lists in lists": ("a: " + "[" * 900 + "]" * 900, "levels deep"),
    "a key that is a number": ("a: {1: 2}", "a: the key 1 is no text"),
    "a key that YAML takes for a claim": ("on: 2", "the key True is no text"),
    "a key that is a list": ("? [a]\n: b", "unhashable key"),
    "a NUL": ('a: {b: ["\\0"]}', "a.b: text with a NUL"),
    "a NUL in a key": ('"\\0": 1', "a NUL"),
    "a text of no field": ("a: " + "x" * 5000, "a: text of 5,000 characters"),
    "half a character": ('a: "\\ud800"', "a: text with half a character"),
    "bytes": ("a: !!binary aGk=", "a: a bytes"),
    "a set": ("a: !!set {b}", "a: a set"),
    "a date": ("a: 2020-01-01", "a: a date"),
    "no date": ("a: 2020-99-99", "month must be in 1..12"),
    "no claim": ("a: !!bool perhaps", "not of its kind"),
    "no time": ("a: !!timestamp soon", "not of its kind"),
    "more digits than Python reads": ("a: " + "9" * 5000, "Exceeds the limit"),
    "a number of 80,000 bits": ("a: 0x" + "f" * 20_000, "a: a whole number of 80,000 bits"),
    "two documents": ("a: 1\n---\nb: 2", "single document"),
    "an object": ("a: !!python/object:os.system x", "could not determine a constructor"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_nobody_needs_is_refused_in_a_short_sentence(case: str) -> None:
    text, words = REFUSED[case]
    began = time.monotonic()
    with pytest.raises(ConfigError) as refusal:
        read_yaml(text, "run.yaml")
    assert time.monotonic() - began < 10  # less than one where nobody else is at work
    told = str(refusal.value)
    assert told.startswith("run.yaml ") and words in told
    assert "\n" not in told and len(told) < 500
    assert "set_int_max_str_digits" not in told  # only who writes Python could follow that


@pytest.mark.parametrize("case", ["a mapping in itself", "aliases that multiply", "lists in lists"])
def test_a_domain_file_is_read_through_the_same_door(case: str) -> None:
    text, words = REFUSED[case]
    with pytest.raises(ConfigError, match=f"own.yaml cannot be used: .*{words}"):
        parse_domain(text.encode(), "own.yaml")


def test_ordinary_anchors_and_merge_keys_go_on_working() -> None:
    text = "a: &a {steps: 5, of: [1, 2]}\nb: {<<: *a, steps: 6}\nc: [*a, *a]\n"
    values = read_yaml(text, "run.yaml")
    assert values == {
        "a": {"steps": 5, "of": [1, 2]},
        "b": {"steps": 6, "of": [1, 2]},
        "c": [{"steps": 5, "of": [1, 2]}] * 2,
    }
    values["c"][0]["of"].append(3)  # as --set does: only this one changes
    assert values["a"]["of"] == values["c"][1]["of"] == [1, 2]


def test_a_text_is_read_no_further_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("domains.yaml_values.MAX_VALUES", 100)
    assert len(read_yaml(f"a: [{'1, ' * 90}]", "run.yaml")["a"]) == 90
    with pytest.raises(ConfigError, match="it holds more than 100 values"):
        read_yaml(f"a: [{'1, ' * 200}", "run.yaml")  # not even to the bracket that is missing


def test_values_that_come_by_no_file_are_counted_too() -> None:
    deep: list[object] = []
    for _ in range(MAX_DEPTH):
        deep = [deep]
    circle: dict[str, object] = {}
    circle["a"] = circle
    for values in (deep, circle):
        with pytest.raises(ConfigError, match="levels deep"):
            checked_values(values)
    assert checked_values({"a": (1, [None, True, 0.5, "x"])}) == {"a": (1, [None, True, 0.5, "x"])}


@pytest.mark.parametrize("value", ["nan", float("inf"), True, None, [], {}, "x", 10**400, "1e999"])
def test_what_is_no_finite_number(value: object) -> None:
    assert finite(value) is None
    assert len(shown(value)) < 250
