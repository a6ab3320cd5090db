"""`lsap-archive nearest` and `lsap-archive index`."""

from __future__ import annotations

import argparse
import sys
from typing import get_args

from lsap_archive.commands.shown import print_json, print_table, visible
from lsap_archive.errors import ArchiveKeyError
from lsap_archive.reading.nearest.asked import ask_nearest, image_of_picture, notes_of_answer, read_code
from lsap_archive.reading.nearest.spaces import Metric, Space
from lsap_archive.reading.opening import open_archive
from lsap_archive.writing.code_index import build_index


def add_nearest_options(parser: argparse.ArgumentParser) -> None:
    """Add what `nearest` may be asked."""
    parser.add_argument("method", help='whose codes: "lsap_e", "lsap_e/pti", or a digest')
    about_pictures = "a file that was inverted, under whatever name: its content is looked for"
    parser.add_argument("picture", nargs="*", metavar="PICTURE", help=about_pictures)
    about_images = "an image of the archive; like all that is asked about, may be given several times"
    parser.add_argument("--image", action="append", default=[], metavar="ID", help=about_images)
    parser.add_argument("--code", action="append", default=[], metavar="FILE.npy", help="a code [K, D], or in W [D]")
    parser.add_argument("-k", type=int, default=10, metavar="N", help="how many for each (default 10)")
    _add_space_options(parser)
    parser.add_argument("--approximate", action="store_true", help="ask the index that `lsap-archive index` made")


def add_index_options(parser: argparse.ArgumentParser) -> None:
    """Add what an index is made of."""
    parser.add_argument("method", help="whose codes, as `nearest` will name it")
    _add_space_options(parser)


def _add_space_options(parser: argparse.ArgumentParser) -> None:
    told = "what is compared: all rows of W+, their mean, or directions of style vectors (default w_plus)"
    parser.add_argument("--space", choices=get_args(Space), default="w_plus", help=told)
    parser.add_argument("--metric", choices=get_args(Metric), default="euclidean", help="by what (default euclidean)")


def find_nearest(parsed: argparse.Namespace) -> int:
    """`lsap-archive nearest`; prints a table or JSON, and on stderr what is to be known of it."""
    archive = open_archive(parsed.url)
    image_ids = list(parsed.image)
    for place in parsed.picture:
        image_id = image_of_picture(archive, place, parsed.method)
        if image_id is None:
            raise ArchiveKeyError(
                f"{archive.url} has no code of {parsed.method} of an image with the content of {place}: `lsap archive "
                "nearest` inverts such a picture and asks about its code"
            )
        image_ids.append(image_id)
    answer = ask_nearest(
        archive,
        image_ids,
        {place: read_code(place) for place in parsed.code},
        parsed.k,
        parsed.method,
        space=parsed.space,
        metric=parsed.metric,
        approximate=parsed.approximate,
    )
    if parsed.json:
        print_json(answer.to_pylist())
    else:
        print_table(answer.column_names, answer.to_pylist())
    for note in notes_of_answer(answer):
        print(visible(note), file=sys.stderr)
    return 0


def make_index(parsed: argparse.Namespace) -> int:
    """`lsap-archive index`."""
    info = build_index(parsed.url, parsed.method, space=parsed.space, metric=parsed.metric)
    if parsed.json:
        print_json(vars(info))
        return 0
    told = (
        f"{info.num_codes} codes of {info.method} in {info.space} by {info.metric}: of the 10 nearest others of "
        f"{info.num_asked} codes it finds {info.recall:.1%}; `nearest --approximate` asks it"
    )
    print(visible(told))
    return 0
