"""`lsap invert`: photos in, pictures out, in this process: no Prefect, no Ray, no archive."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.commands.generators import use_threads_for
from flows.commands.numbers import parse_seed
from flows.commands.output import print_result
from flows.running.ending import DONE, FAILED

if TYPE_CHECKING:  # help should not wait for torch
    from lsap import Inversion, Model, Photo
    from tasks.errors import BadImageError

Finish = Callable[[argparse.ArgumentParser, Callable[[argparse.Namespace], int]], None]


def add_invert_command(groups: Any, finish: Finish) -> None:
    """Add `invert` to the command line."""
    invert = groups.add_parser("invert", help="invert and edit a photo or some, here and now")
    invert.add_argument("photos", nargs="+", metavar="PHOTO", help="files or URLs of pictures")
    invert.add_argument("--domain", required=True, help="name of a built-in domain, or the path of one's own .yaml")
    invert.add_argument(
        "--method", default="lsap_o_w_plus", help="also with a refiner: lsap_e/hfgi (default: %(default)s)"
    )
    invert.add_argument(
        "--out", default="inverted", metavar="DIR", help="folder for the pictures (default: %(default)s)"
    )
    invert.add_argument(
        "--direction", nargs="+", metavar="NAME_OR_FILE", help="to edit along; all of the domain by default"
    )
    invert.add_argument(
        "--strength", type=float, nargs="+", default=[-2.0, -1.0, 1.0, 2.0], metavar="S", help="of edits"
    )
    invert.add_argument(
        "--adapt", action="store_true", help="make a photo that is unlike the domain alike first, where that is simple"
    )
    invert.add_argument(
        "--fit", default="crop", choices=["crop", "refuse", "letterbox", "stretch"], help="photos of another shape"
    )
    invert.add_argument("--generator", metavar="FILE", help="weights; the domain's by default")
    invert.add_argument("--encoder", action="append", default=[], metavar="NAME=FILE", help="weights of an encoder")
    invert.add_argument("--label", type=int, metavar="N", help="class of a conditional generator, from 0")
    invert.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the method")
    invert.add_argument("--seed", type=parse_seed, default=0, help="of the random state (default: %(default)s)")
    invert.add_argument("--device", default="auto", help='"auto", "cpu", "cuda", ...')
    finish(invert, invert_photos)


def invert_photos(parsed: argparse.Namespace) -> int:
    """`lsap invert`; fails when a photo could not be inverted, and inverts the others all the same."""
    import lsap
    from flows.parameters.run_file import parse_changes
    from lsap.inversion import write_folder

    encoders = dict(_named_file(text) for text in parsed.encoder)
    settings = parse_changes(parsed.set)
    model = lsap.load(
        parsed.domain, generator=parsed.generator, encoders=encoders, label=parsed.label, device=parsed.device
    )
    use_threads_for(model.config.content_size)
    directions = model.directions if parsed.direction is None else tuple(parsed.direction)
    for direction in directions:  # wrong ones are refused before the work
        model.build_edit(direction, parsed.strength[0], {})
    out = Path(parsed.out)
    photos, results = _read(model, parsed)
    folders = _folders(out, parsed.photos)
    with _progress() as tell:
        found = model.invert_all(
            list(photos.values()), parsed.method, adapt=parsed.adapt, seed=parsed.seed, tell=tell, **settings
        )
        for place, one in zip(photos, found, strict=True):
            results[place] = one
            if not isinstance(one, Exception):
                write_folder(one, folders[place], directions=directions, strengths=parsed.strength)
    left_out = model.unusable_directions if parsed.direction is None else {}
    return _print(results, folders, left_out, parsed)


def _read(model: Model, parsed: argparse.Namespace) -> tuple[dict[str, Photo], dict[str, Inversion | BadImageError]]:
    """The photos that can be read by their places, and of the others why not."""
    from tasks.errors import BadImageError, SourceError

    photos, problems = {}, dict[str, Any]()
    places = list(dict.fromkeys(parsed.photos))
    for place in places:
        try:
            photos[place] = model.photo(place, fit=parsed.fit)
        except BadImageError as error:
            problems[place] = error
        except SourceError as error:
            if len(places) == 1:
                raise
            problems[place] = BadImageError("not_there", str(error))
    return photos, problems


def _folders(out: Path, places: list[str]) -> dict[str, Path]:
    """Where the pictures of each photo go: one photo's straight into the folder, several into one each."""
    unique = list(dict.fromkeys(places))
    if len(unique) == 1:
        return {unique[0]: out}
    names = {place: Path(place.rstrip("/")).name for place in unique}
    stems = Counter(Path(name).stem for name in names.values())
    chosen, taken = {}, set[str]()
    for place, name in names.items():
        wanted = Path(name).stem if stems[Path(name).stem] == 1 else name
        free = next(one for one in _numbered(wanted) if one not in taken)
        taken.add(free)
        chosen[place] = out / free
    return chosen


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1


def _named_file(text: str) -> tuple[str, str]:
    from flows.parameters.run_file import ParameterError

    name, sign, place = text.partition("=")
    if not (name and sign and place):
        raise ParameterError(f"--encoder is {text!r}; wanted NAME=FILE, such as e4e=e4e_ffhq_encode.pt")
    return name, place


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[float], None] | None]:
    """A bar where a person looks on; nothing in files and pipes."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("inverting"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("inverting", total=1.0)
        yield lambda share: bar.update(task, completed=share)


def _print(
    results: dict[str, Inversion | BadImageError],
    folders: dict[str, Path],
    left_out: dict[str, str],
    parsed: argparse.Namespace,
) -> int:
    documents, lines = [], []
    for place in folders:  # as they were asked for
        one = results[place]
        if isinstance(one, Exception):
            documents.append({"photo": place, "failed": one.reason, "message": str(one)})
            lines.append(f"{place}: failed ({one.reason}): {one}")
            continue
        documents.append({**one.describe(), "photo": place, "folder": str(folders[place])})
        told = ", ".join(
            f"{name} {value:.4f}" for name, value in one.measures.items() if name in ("mse", "lpips", "sncd")
        )
        lines.append(f"{place}: {one.title}, {told}")
        lines += [f"  {note}" for note in one.notes]
        lines += [f"  warning: {warning}" for warning in one.warnings]
        lines.append(f"  {folders[place] / 'strip.png'}")
    lines += [f"not edited along {name}: {why}" for name, why in left_out.items()]
    print_result({"photos": documents, "directions_left_out": left_out}, parsed.json, lines)
    return FAILED if any(isinstance(one, Exception) for one in results.values()) else DONE
