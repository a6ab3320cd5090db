"""One image of a source: its id, which files count as images, and what is wrong with a name."""

import re
from collections import Counter
from dataclasses import dataclass, field, replace

from lsap_archive import Secrets, credential_in
from tasks.errors import BadImageError
from tasks.sources.names import ZIP_GUESS, DecodedName, decode_name

IMAGE_SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
    | {".pbm", ".pgm", ".ppm", ".pnm"}
    | {".avif", ".avifs", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"}
    | {".jxl"}  # not decoded here: a bad row each, none is lost
)


@dataclass(frozen=True)
class SourceItem:
    """One image of a source; enough to read it later without listing the source again.

    Attributes:
        image_id: the name within the source, unique there, such as "faces/a b.png".
        uri: where the bytes are; `Source.read` uses nothing else.
        problem: why the item is not to be opened at all, or None.
        version: what the listing tells that changes whenever the bytes do, or None where it tells nothing: while
            the version at a uri stays the same, the bytes there need not be read again.
    """

    image_id: str
    uri: str
    problem: BadImageError | None = None
    version: str | None = None


@dataclass
class LeftOut:
    """Counts of what a listing passes over, filled while it runs."""

    other_files: Counter[str] = field(default_factory=Counter)
    num_hidden: int = 0
    num_loops: int = 0
    num_guessed: int = 0  # images whose names are bytes that do not say how they are to be read
    notes: list[str] = field(default_factory=list)  # of shards that are cut short, or cannot be read


def check_name(name: str, what: str) -> BadImageError | None:
    """The problem of a name that leads out of its source, or cannot be stored; None when it is fine."""
    parts = re.split(r"[/\\]", name)
    if ".." in parts or name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[/\\]", name):
        return BadImageError(
            "unsafe_name",
            f"the {what} {name!r} leads out of the source, a name below it was wanted; it was not opened: "
            "rename it, or make it a manifest row with its full address",
        )
    if "\0" in name:
        return BadImageError(
            "unsafe_name", f"the {what} {name!r} has a NUL character, which no file can have: rename it"
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        return BadImageError(
            "unsafe_name", f"the {what} {name!r} is not valid Unicode, UTF-8 was wanted: rename the file"
        )
    return None


def without_credential(item: SourceItem) -> SourceItem:
    """The item; where its id or address opens something, a bad one that does not show it: both are kept in archives."""
    found = credential_in(item.uri) or credential_in(item.image_id)
    if found is None:
        return item
    secrets = Secrets()
    image_id, uri = secrets.hide(item.image_id), secrets.hide(item.uri)
    problem = BadImageError(
        "unsafe_name",
        f"the uri {uri!r} carries {found}, which archives would keep; an address without one was wanted (the storage's "
        "client has its own places for it); it was not opened: rewrite the row, or rename the file",
    )
    return replace(item, image_id=image_id, uri=uri, problem=item.problem or problem)


def outside(uri: str, source: str) -> BadImageError:
    """The problem of an address, from a plan that others may have written, that is not one of the source's."""
    return BadImageError(
        "unsafe_name", f"{uri!r} is no image of {source}, an address below it was wanted; it was not opened: plan anew"
    )


def stored_name(name: bytes, what: str) -> tuple[DecodedName, BadImageError | None]:
    """A name inside a shard, whose members are opened by their places there, and its problem or None."""
    decoded = decode_name(name, ZIP_GUESS)
    return decoded, check_name(decoded.text, what)
