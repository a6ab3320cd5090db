"""`lsap archive`: look at an archive, check it, mend it."""

from __future__ import annotations

import argparse
import dataclasses

from flows.commands.output import lines_of, print_result, show
from flows.running.ending import DONE, FAILED


def describe_archive(parsed: argparse.Namespace) -> int:
    """`lsap archive describe`."""
    from lsap_archive import open_archive

    description = open_archive(parsed.url).describe()
    return show(description, parsed)


def check_archive(parsed: argparse.Namespace) -> int:
    """`lsap archive verify`; fails when there is a problem."""
    from lsap_archive import verify_archive

    report = verify_archive(parsed.url)
    document = dataclasses.asdict(report)
    print_result(document, parsed.json, lines_of(document))
    return FAILED if report.problems else DONE


def mend_archive(parsed: argparse.Namespace) -> int:
    """`lsap archive repair`; fails when something is left that it cannot mend."""
    from lsap_archive import give_up_unfinished, repair_archive

    if parsed.give_up:
        report = give_up_unfinished(parsed.url, parsed.give_up, dry_run=parsed.dry_run)
    else:
        report = repair_archive(parsed.url, dry_run=parsed.dry_run)
    print_result(report.to_dict(), parsed.json, report.lines())
    return FAILED if report.left else DONE


def export_edited(parsed: argparse.Namespace) -> int:
    """`lsap archive images`."""
    from pathlib import Path

    from tasks.editing.export_images import export_images

    written, problems = export_images(parsed.url, parsed.method, Path(parsed.out))
    return show({"folder": parsed.out, "written": written, "without an image": problems or "none"}, parsed)
