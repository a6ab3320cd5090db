"""`lsap archive`: look at an archive, check it, mend it."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from flows.commands.generators import named_generator, open_generator, renderer_of
from flows.commands.numbers import parse_count, parse_preview_side
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


def export_pictures(parsed: argparse.Namespace) -> int:
    """`lsap archive images`."""
    from pathlib import Path

    from lsap_archive import open_archive
    from tasks.editing.export_images import export_images
    from tasks.weights.devices import images_together

    renderer, batch_size = None, 1
    if parsed.domain or parsed.generator:
        loaded, domain = open_generator(parsed)
        renderer, batch_size = renderer_of(open_archive(parsed.url), loaded, domain), images_together(loaded.config)
    written, problems = export_images(parsed.url, parsed.method, Path(parsed.out), renderer, batch_size=batch_size)
    return show({"folder": parsed.out, "written": written, "without an image": problems}, parsed)


def add_import_command(verbs: Any, finish: Callable[[argparse.ArgumentParser, Any], None]) -> None:
    """Add `import` to the verbs of `archive`."""
    command = verbs.add_parser("import", help="codes that another program has found, as a run of an archive")
    command.add_argument("url", help="of the archive; made if there is none")
    files = "projected_w.npz, latents.pt, codes.npy, a folder of such, a .csv of image_id and codes, ..."
    command.add_argument("codes", nargs="+", metavar="FILE", help=files)
    command.add_argument("--method", required=True, metavar="NAME", help="what the archive is to call what found them")
    command.add_argument("--domain", help="name of a built-in domain, or the path of one's own .yaml")
    command.add_argument("--generator", metavar="FILE", help="weights that the codes are of; the domain's by default")
    command.add_argument("--label", type=int, metavar="N", help="class of a conditional generator, from 0")
    command.add_argument("--images", metavar="SOURCE", help="the images that the codes are of: a folder, a .zip, ...")
    command.add_argument("--ids", metavar="FILE", help="image ids in the order of the codes, one a line")
    command.add_argument("--space", choices=["w", "w_plus"], help="of the codes, where their shape does not tell")
    fits = ["refuse", "crop", "letterbox", "stretch"]
    command.add_argument("--fit", choices=fits, default="refuse", help="images of another shape (default refuse)")
    command.add_argument(
        "--anchor-samples",
        type=parse_count,
        metavar="N",
        help="synthetic codes for the reference of SNCD, where the archive has none (default 50000)",
    )
    command.add_argument("--batch-size", type=parse_count, default=16, help="images measured together (default 16)")
    command.add_argument("--device", default="auto", help='"auto", "cpu", "cuda", ...')
    small = "longer side of the small pictures that are kept, 0 to 256 pixels; 0 keeps none (default 128)"
    command.add_argument("--previews", type=parse_preview_side, metavar="N", help=small)
    finish(command, import_foreign_codes)


def import_foreign_codes(parsed: argparse.Namespace) -> int:
    """`lsap archive import`."""
    from flows.parameters.run_file import ParameterError
    from flows.parameters.shared import PREVIEWS
    from lsap_archive import read_file
    from lsap_core.errors import ShapeError
    from tasks.archived.anchors import AnchorOptions
    from tasks.inversion.imported import ImportRequest, import_codes

    generator, _ = named_generator(parsed)
    ids: list[str] = []
    if parsed.ids is not None:
        try:
            ids = read_file(parsed.ids).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ParameterError(f"--ids {parsed.ids} is no text in UTF-8 ({error}); wanted one id a line") from error
    request = ImportRequest(
        parsed.url,
        tuple(parsed.codes),
        generator,
        parsed.method,
        space=parsed.space,
        image_ids=tuple(ids),
        source=parsed.images,
        fit=parsed.fit,
        anchor=AnchorOptions(num_samples=parsed.anchor_samples) if parsed.anchor_samples else AnchorOptions(),
        batch_size=parsed.batch_size,
        device=parsed.device,
        previews=PREVIEWS if parsed.previews is None else parsed.previews,
    )
    try:
        found = dataclasses.asdict(import_codes(request))
    except ShapeError as error:  # codes of another generator, or of a space that nobody has said
        raise ParameterError(str(error)) from error
    return show({"archive": parsed.url, "method": parsed.method, **found}, parsed)
