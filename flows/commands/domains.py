"""`lsap domain`: how good a domain's generator is."""

from __future__ import annotations

import argparse

from flows.commands.output import DONE, print_result


def measure_domain(parsed: argparse.Namespace) -> int:
    """`lsap domain quality`."""
    from domains.digits.report_quality import measure_quality, write_sample_sheet

    measured = measure_quality()
    if parsed.sheet:
        write_sample_sheet(parsed.sheet)
    print_result(measured.to_dict(), parsed.json, measured.table())
    return DONE
