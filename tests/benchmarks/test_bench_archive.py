"""All sides of the archive's benchmark answer alike, and a difference is noticed before anything is timed."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NUM_ROWS = 700
TOGETHER = ("bench_archive", "archive_questions", "archive_peers", "plausible_archive")


@pytest.fixture(scope="module")
def bench() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        for name in TOGETHER:
            patch.setitem(sys.modules, name, importlib.import_module(name))
        module = importlib.import_module("bench_archive")
        patch.setattr(module, "in_its_own_process", lambda call, *arguments: call(*arguments))
        yield module


@pytest.fixture(scope="module")
def url(bench: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("lancedb")
    found = str(tmp_path_factory.mktemp("bench") / "archive")
    bench.write_archive(found, NUM_ROWS)
    bench.build_index(found, bench.METHOD)
    for write in bench.WRITE.values():
        assert all(seconds > 0 for seconds in write(found, NUM_ROWS).values())
    return found


def test_all_sides_give_the_same_answers(bench: ModuleType, url: str) -> None:
    recalls = bench.check(url, NUM_ROWS, [*bench.OURS, *bench.PEERS])
    assert recalls.keys() == {"nearest", "lancedb"} and min(recalls.values()) > 0.9
    names = {side: {name for kind in of for name in of[kind](url, NUM_ROWS)} for side, of in bench.PEERS.items()}
    ours = {name for kind in bench.OURS for name in bench.OURS[kind](url, NUM_ROWS)}
    assert ours - names["lancedb"] == {"start", "first page", "neighbours", "100 previews"}
    assert names["lancedb"] - names["numpy"] == {"nearest 10 by index"} and names["numpy"] < names["lancedb"] < ours
    (page, _), (start, _), (some, _), (pictures, _) = (
        bench.answers("explorer", "explorer", url, NUM_ROWS)[name]
        for name in ("200 in the middle", "all, worst first", "filter", "100 previews")
    )
    assert len(page["rows"]) == 200 and page["rows"] != start["rows"] and page["total"] == start["total"] == NUM_ROWS
    assert 0 < some["total"] < NUM_ROWS and 90 < pictures <= 100


@pytest.mark.parametrize("question", ["aggregate", "codes of 64", "nearest 10", "histogram", "200 in the middle"])
def test_nothing_is_timed_where_answers_differ(
    bench: ModuleType, url: str, question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kind,) = [kind for kind in bench.OURS if question in bench.PEERS["numpy"][kind](url, NUM_ROWS)]
    build = bench.PEERS["numpy"][kind]

    def wrong(*arguments: Any) -> dict[str, Callable[[int], Any]]:
        questions = build(*arguments)
        ask = questions[question]
        return {**questions, question: lambda number: slightly_else(ask(number))}

    monkeypatch.setitem(bench.PEERS["numpy"], kind, wrong)
    monkeypatch.setattr(bench, "OURS", {kind: bench.OURS[kind]})
    with pytest.raises(SystemExit, match=f"(?s){question}: .* answers .*, numpy .*nothing was timed"):
        bench.check(url, NUM_ROWS, [kind, "numpy"])


def slightly_else(answer: Any) -> Any:
    if isinstance(answer, np.ndarray):
        return np.nextafter(answer, np.float32(9))
    if isinstance(answer, dict):
        return {**answer, list(answer)[-1]: [*list(answer.values())[-1][:-1], 3]}
    if isinstance(answer[0], tuple):
        return [(*row[:-1], row[-1] * (1 + 1e-7)) for row in answer]
    return answer[::-1]


def test_missing_values_and_last_digits_are_no_difference(bench: ModuleType) -> None:
    assert bench.same([("a", None, 0.1 + 0.2)], [("a", math.nan, 0.3)])
    assert not bench.same([("a", None)], [("a", 0.0)]) and not bench.same([1], [1, 2]) and not bench.same("1", 1)
    assert not bench.same(3.0, "3.0") and not bench.same({"a": 1}, {"b": 1}) and bench.same(2, 2.0)


def test_ratios_are_of_questions_with_the_same_name(bench: ModuleType, url: str) -> None:
    cells = [("sql", "sql"), ("nearest", "nearest"), ("lancedb", "sql"), ("numpy", "nearest"), ("open", "open")]
    results = [bench.measured(cell, kind, url, NUM_ROWS) for cell, kind in cells]
    for result in results:
        assert all(seconds > 0 for seconds in result["seconds"].values())
        assert result["seconds"].keys() == result["processor_seconds"].keys()
    results[0]["processor_seconds"]["aggregate"], results[0]["seconds"]["aggregate"] = 0.002, 0.001
    results[2]["processor_seconds"]["aggregate"], results[2]["seconds"]["aggregate"] = 0.001, 0.004
    head, *lines = bench.ratios(results)
    assert head.split() == ["ours", "/", "theirs", "ours", "lancedb", "numpy"]
    told = {line[2:30].strip(): line[30:].split() for line in lines}
    assert told["aggregate"] == ["2.00", "(1.00)", "ms", "2.00", "(0.25)", "-"]
    assert told["nearest 10"][3] == "-" and told["nearest 10"][4] != "-"
    assert "nearest 10 by index" not in told and "open" not in told
