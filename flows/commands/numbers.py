"""Numbers on the command line: what is out of bounds is refused with the flag's name, before anything is loaded."""

from __future__ import annotations

import argparse

from domains.yaml_values import LARGEST_INTEGER, shown

MOST = 2**31 - 1


def parse_count(text: str) -> int:
    """A whole number from 1."""
    return _whole(text, 1, MOST)


def parse_seed(text: str) -> int:
    """A whole number from 0 that 64 bits hold."""
    return _whole(text, 0, LARGEST_INTEGER)


def parse_preview_side(text: str) -> int:
    """Pixels of a preview's longer side, or 0 for none."""
    from flows.parameters.numbers import LARGEST_PREVIEW

    return _whole(text, 0, LARGEST_PREVIEW)


def _whole(text: str, least: int, most: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"{shown(text)}: wanted a whole number from {least} to {most}")
    return number
