"""Numbers, names and short lists of a report as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from tasks.visible_text import HARD_SPACE

NOTHING = "–"


def decimals_for(values: Iterable[float], significant: int = 3, least: int = 4) -> int:
    """Decimals that show the smallest of the values with some significant digits."""
    sizes = [abs(value) for value in values if math.isfinite(value) and value]
    wanted = significant - 1 - math.floor(math.log10(min(sizes))) if sizes else least
    return max(least, min(wanted, 7))


def as_number(value: float | None, decimals: int = 4) -> str:
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:,.{decimals}f}".replace("-", "−")


def as_percent(share: float) -> str:
    return f"{100 * share:.0f}{HARD_SPACE}%" if math.isfinite(share) else NOTHING


def as_change(share: float) -> str:
    return f"{100 * share:+.0f}{HARD_SPACE}%".replace("-", "−") if math.isfinite(share) else NOTHING


def as_duration(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 10:
        return f"{seconds:.2f}{HARD_SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min")] if hours else [(minutes, "min"), (rest, "s")]
    return HARD_SPACE.join(f"{amount}{HARD_SPACE}{unit}" for amount, unit in parts if amount)


def count_of(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def failed_and_duplicate(num_failed: int, num_duplicate: int) -> str:
    counts = [f"{num_failed:,} failed"] if num_failed else []
    return ", ".join([*counts, count_of(num_duplicate, "duplicate")] if num_duplicate else counts)


def listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length // 2]} … {text[-length // 2 :]}"


def reference_title(label: str) -> str:
    """The label as it is printed: psi as the letter, and no line break within "ψ = 1"."""
    return label.replace("psi = ", f"ψ{HARD_SPACE}={HARD_SPACE}")


def short_reference_title(label: str) -> str:
    return reference_title(label.removeprefix("synthetic, "))
