"""Patterns of names with braces, as shards are named: {000..127}, {train,val}."""

import math
import re
from itertools import product

from tasks.errors import SourceError

MAX_NAMES = 100_000
_BRACES = re.compile(r"\{(?:(?P<first>\d+)\.\.(?P<last>\d+)|(?P<words>[^{}]*,[^{}]*))\}")
GLOB_CHARACTERS = "*?["


def expand_braces(pattern: str) -> list[str]:
    """Every name that a pattern stands for, in the order of a shell: "{08..10}.tar" is 08.tar, 09.tar, 10.tar.

    Numbers are as wide as the wider of the two where one begins with 0. What is in braces and is neither a range of
    numbers nor a list stays as it is.

    Raises:
        SourceError: there are more than `MAX_NAMES` of them.
    """
    choices: list[list[str] | range] = []
    widths: list[int] = []
    between: list[str] = []
    end = 0
    for match in _BRACES.finditer(pattern):
        between.append(pattern[end : match.start()])
        end = match.end()
        if match["words"] is not None:
            choices.append(match["words"].split(","))
            widths.append(0)
            continue
        first, last = match["first"], match["last"]
        step = 1 if int(first) <= int(last) else -1
        choices.append(range(int(first), int(last) + step, step))
        widths.append(max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0)
    # not len(): a range may be longer than any list
    count = math.prod(abs(one.stop - one.start) if isinstance(one, range) else len(one) for one in choices)
    if count > MAX_NAMES:
        raise SourceError(
            f"{pattern} stands for {count} names, at most {MAX_NAMES} were wanted: name their folder, or use *"
        )
    texts = [
        [f"{value:0{width}d}" if isinstance(value, int) else value for value in choice]
        for choice, width in zip(choices, widths, strict=True)
    ]
    return [
        "".join(text for pair in zip(between, chosen, strict=True) for text in pair) + pattern[end:]
        for chosen in product(*texts)
    ]
