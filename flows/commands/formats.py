"""`lsap formats`: which files are read, in one table made of the tables that the readers themselves go by.

`docs/formats.md` is what `lsap formats --markdown` prints.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from flows.commands.output import show
from flows.running.ending import DONE

HEADING = """\
# Which files are read

Made by `lsap formats --markdown` of the tables that the readers go by. A file is known by what is in it, not by its
name; names decide only what of a folder is taken for an image. What is in none of these lines is refused in a sentence.

| what | read |
| --- | --- |"""


def what_is_read() -> Mapping[str, str]:
    """Every kind of file that a command takes, and of each what is read, in words."""
    from lsap_core.encoders.checkpoints.published import HEADS_OF_TYPE
    from lsap_core.generators.checkpoints import LAYOUTS
    from tasks.faces.landmarks import LANDMARK_KINDS
    from tasks.inversion import code_files
    from tasks.pictures.formats import PICTURE_FORMATS
    from tasks.sources.items import IMAGE_SUFFIXES
    from tasks.sources.storage import SOURCE_KINDS
    from tasks.weights import encoders, foreign_directions, generators, refiners

    return {
        "pictures": ", ".join(
            one.name + (f" ({one.needs})" if one.needs.startswith("lsap") else "") for one in PICTURE_FORMATS
        ),
        "pictures, names in folders and containers": " ".join(sorted(IMAGE_SUFFIXES)),
        "containers (source)": SOURCE_KINDS,
        "generators (generator)": generators.KINDS,
        "generators, programs": "; ".join(dict.fromkeys(one.program for one in LAYOUTS if not one.way_out)),
        "encoders (encoders)": encoders.KINDS,
        "encoders, classes of released files": ", ".join(f"{name} ({heads})" for name, heads in HEADS_OF_TYPE.items()),
        "refiners (refiner_networks)": refiners.KINDS,
        "directions and components (edits)": foreign_directions.KINDS,
        "codes (lsap archive import)": code_files.KINDS,
        "landmarks (lsap image align)": LANDMARK_KINDS,
    }


def as_markdown(read: Mapping[str, str]) -> str:
    """The page of the documentation."""
    cells = [[text.replace("|", "\\|") for text in row] for row in read.items()]
    return "\n".join([HEADING, *(f"| {what} | {how} |" for what, how in cells)])


def show_formats(parsed: argparse.Namespace) -> int:
    """The command."""
    if parsed.markdown:
        print(as_markdown(what_is_read()))
        return DONE
    return show(dict(what_is_read()), parsed)
