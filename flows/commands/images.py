"""`lsap image`: photos in, aligned faces out, and edited faces back into their photos."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.commands.output import print_result
from flows.running.ending import DONE, FAILED

SHOWN_LINES = 40
MOST_DOUBLINGS = 4

Finish = Callable[[argparse.ArgumentParser, Callable[[argparse.Namespace], int]], None]


def add_image_commands(groups: Any, finish: Finish) -> None:
    """Add the group `image` to the command line."""
    image = groups.add_parser("image", help="cut faces out of photos, and put them back").add_subparsers(
        dest="verb", metavar="COMMAND", required=True
    )
    align = image.add_parser("align", help="cut out faces as FFHQ's were")
    align.add_argument("source", help="photos: a folder, a glob, an image, a .zip, .tar or .parquet shards, a manifest")
    align.add_argument("--out", required=True, metavar="DIR", help="folder for the faces and report.json")
    where = align.add_mutually_exclusive_group()
    where.add_argument("--landmarks", metavar="FILE", help="68 or 5 points by image_id: .json, .csv, .npz, .pts")
    where.add_argument("--detector", choices=["dlib", "mtcnn"], help="what finds them without (default mtcnn)")
    align.add_argument("--predictor", metavar="FILE", help="dlib's shape predictor with 68 points (with dlib)")
    align.add_argument("--upsampling", type=int, default=0, metavar="N", help="double photos N times first (with dlib)")
    align.add_argument("--size", type=int, default=1024, metavar="PIXELS", help="side of the faces")
    align.add_argument("--face", type=_face, default="largest", metavar="largest|all|only|INDEX", help="of several")
    align.add_argument("--min-side", type=int, metavar="PIXELS", help="least side of a face's square in its photo")
    align.add_argument("--supersampling", type=int, default=1, metavar="N", help="4 with size 1024 is FFHQ's own way")
    finish(align, align_images)

    paste = image.add_parser("paste", help="put edited faces back into their photos")
    paste.add_argument("edited", metavar="EDITED_DIR", help="folder of faces under the names that `align` gave them")
    paste.add_argument("--report", required=True, metavar="report.json", help="of `align`")
    paste.add_argument("--out", required=True, metavar="DIR", help="folder for the photos")
    paste.add_argument("--source", help="of the photos, where they have moved since")
    paste.add_argument("--feather", type=float, default=0.05, metavar="SHARE", help="width of the faded edge")
    finish(paste, paste_images)


def align_images(parsed: argparse.Namespace) -> int:
    """`lsap image align`; fails when no face at all was cut out."""
    from tasks.faces.align_faces import AlignSettings, align_photos
    from tasks.sources.source import open_source

    settings = AlignSettings(parsed.size, parsed.face, parsed.min_side, parsed.supersampling)
    finder = _finder(parsed)
    with open_source(parsed.source) as source:
        report = align_photos(source, finder, Path(parsed.out), settings)
    lines = [(face.status, face.image_id, face.problem or face.output or "") for face in report.faces]
    _print(report.to_dict(), lines, report.counts, parsed)
    return DONE if report.counts.get("aligned") else FAILED


def paste_images(parsed: argparse.Namespace) -> int:
    """`lsap image paste`; fails when no face at all was pasted."""
    from tasks.faces.paste_faces import paste_photos

    report = paste_photos(
        Path(parsed.edited), Path(parsed.report), Path(parsed.out), source=parsed.source, feather=parsed.feather
    )
    lines = [(photo.status, photo.image_id, photo.problem or photo.output or "") for photo in report.photos]
    _print(report.to_dict(), lines, report.counts, parsed)
    return DONE if report.counts.get("pasted") else FAILED


def _finder(parsed: argparse.Namespace) -> Any:
    """What tells where the faces are."""
    from lsap_core.errors import ConfigError
    from tasks.faces.landmarks import DlibFinder, MtcnnFinder, read_landmarks
    from tasks.settings import Settings
    from tasks.weights.published import Published

    if (parsed.predictor is not None) != (parsed.detector == "dlib"):
        raise ConfigError(
            "--detector dlib and --predictor FILE go together: the predictor with 68 points is not part of dlib"
        )
    if parsed.upsampling and parsed.detector != "dlib":
        raise ConfigError("--upsampling goes with --detector dlib")
    if not 0 <= parsed.upsampling <= MOST_DOUBLINGS:
        raise ConfigError(f"--upsampling is {parsed.upsampling}; wanted 0 to {MOST_DOUBLINGS}")
    if parsed.landmarks is not None:
        return read_landmarks(Path(parsed.landmarks))
    if parsed.detector == "dlib":
        return DlibFinder(Path(parsed.predictor), upsampling=parsed.upsampling)
    return MtcnnFinder(Published(Settings.from_environment().backbones))


def _face(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def _print(
    document: dict[str, Any], lines: list[tuple[str, str, str]], counts: dict[str, int], parsed: argparse.Namespace
) -> None:
    """The report as JSON, or as a table with what went wrong first."""
    lines.sort(key=lambda line: line[0] in ("aligned", "pasted"))
    shown = [f"{parsed.out}: " + (", ".join(f"{count} {status}" for status, count in counts.items()) or "nothing")]
    shown += [f"  {status:<13}  {image_id}  {text}" for status, image_id, text in lines[:SHOWN_LINES]]
    if len(lines) > SHOWN_LINES:
        shown.append(f"  ... and {len(lines) - SHOWN_LINES} more")
    print_result(document, parsed.json, shown)
