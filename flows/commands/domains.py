"""`lsap domain`: how good a domain's generator is."""

from __future__ import annotations

import argparse

from domains.embedded import parts_of
from flows.commands.output import print_result
from flows.running.ending import DONE


def measure_domain(parsed: argparse.Namespace) -> int:
    """`lsap domain quality`."""
    measured = parts_of(parsed.name).quality(parsed.sheet)
    print_result(measured.to_dict(), parsed.json, measured.table().split("\n"))
    return DONE
