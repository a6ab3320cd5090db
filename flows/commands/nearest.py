"""`lsap archive nearest`: the images whose codes are nearest to those of images, files of codes, or pictures."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flows.commands.generators import add_generator_arguments, check_made_archive
from flows.commands.numbers import parse_count
from flows.commands.output import print_result
from flows.running.ending import DONE

if TYPE_CHECKING:  # help should not wait for torch
    import numpy as np
    from numpy.typing import NDArray

    from lsap_archive import Archive


def add_nearest_command(verbs: Any, finish: Callable[[argparse.ArgumentParser, Any], None]) -> None:
    """Add `nearest` to the verbs of `archive`."""
    command = verbs.add_parser("nearest", help="the images whose codes are nearest to those of others, or of a picture")
    command.add_argument("url", help="the archive")
    about_pictures = "files; where no image has the content of one, it is inverted by --domain"
    command.add_argument("picture", nargs="*", metavar="PICTURE", help=about_pictures)
    command.add_argument("--method", required=True, metavar="NAME", help='whose codes: "lsap_e", "lsap_e/pti", ...')
    command.add_argument("--image", action="append", default=[], metavar="ID", help="an image of the archive")
    command.add_argument("--code", action="append", default=[], metavar="FILE.npy", help="a code [K, D], or in W [D]")
    command.add_argument("-k", type=parse_count, default=10, metavar="N", help="how many (default 10)")
    spaces = ["w_plus", "w", "s_n"]
    command.add_argument("--space", choices=spaces, default="w_plus", help="what is compared (default w_plus)")
    command.add_argument(
        "--metric", choices=["euclidean", "cosine"], default="euclidean", help="by what (default euclidean)"
    )
    command.add_argument("--approximate", action="store_true", help="ask the index that `lsap-archive index` made")
    add_generator_arguments(command)
    finish(command, find_nearest)


def find_nearest(parsed: argparse.Namespace) -> int:
    """`lsap archive nearest`."""
    from lsap_archive import about_answer, ask_nearest, image_of_picture, notes_of_answer, open_archive, read_code

    archive = open_archive(parsed.url)
    found = {place: image_of_picture(archive, place, parsed.method) for place in parsed.picture}
    known = [image_id for image_id in found.values() if image_id is not None]
    new = [place for place, image_id in found.items() if image_id is None]
    codes = {place: read_code(place) for place in parsed.code}
    if new:
        codes |= _inverted(archive, new, parsed)
    answer = ask_nearest(
        archive,
        [*parsed.image, *known],
        codes,
        parsed.k,
        parsed.method,
        space=parsed.space,
        metric=parsed.metric,
        approximate=parsed.approximate,
    )
    rows, lines = answer.to_pylist(), list[str]()
    for number, row in enumerate(rows):
        if "query" in row and (number == 0 or row["query"] != rows[number - 1]["query"]):
            lines.append(f"nearest to {row['query']}:")
        lines.append(f"{row['distance']:10.6g}  {row['image_id']}  {row['uri']}")
    print_result({**about_answer(answer), "nearest": rows}, parsed.json, [*lines, *notes_of_answer(answer)])
    return DONE


def _inverted(archive: Archive, places: list[str], parsed: argparse.Namespace) -> dict[str, NDArray[np.float32]]:
    """Codes of pictures by the method of the archive.

    Raises:
        ParameterError: no domain is named, or it has another generator than the archive.
        BadImageError: a picture cannot be used.
    """
    import lsap
    from flows.parameters.run_file import ParameterError

    if parsed.domain is None:
        raise ParameterError(
            f"no image of {parsed.method} in {parsed.url} has the content of {', '.join(places)}: name the domain that "
            "inverts such pictures (--domain)"
        )
    model = lsap.load(parsed.domain, generator=parsed.generator, label=parsed.label, device=parsed.device)
    check_made_archive(archive, model.digest, model.config)
    return {place: model.invert(place, parsed.method).codes for place in places}
