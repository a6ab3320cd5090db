"""`lsap archive explore`: an archive as a local web page, with sliders where its generator is at hand."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flows.commands.generators import add_generator_arguments, open_generator, renderer_of, use_threads_for
from flows.commands.output import print_result
from flows.running.ending import DONE, end_well_when_interrupted

if TYPE_CHECKING:  # help should not wait for torch
    from lsap_archive import Archive
    from tasks.editing.live import LiveEdits, Slider
    from tasks.weights.generators import LoadedGenerator

ENDED = "lsap: the page is closed"
logger = logging.getLogger("lsap")


def add_explore_command(verbs: Any, finish: Callable[[argparse.ArgumentParser, Any], None]) -> None:
    """Add `explore` to the verbs of `archive`."""
    explore = verbs.add_parser("explore", help="look at an archive in a browser, with sliders for directions")
    explore.add_argument("url", help="the archive")
    add_generator_arguments(explore)
    explore.add_argument(
        "--direction",
        nargs="+",
        default=[],
        metavar="NAME_OR_FILE",
        help="to have a slider each, of components the first five; all of the domain by default",
    )
    explore.add_argument(
        "--strength", type=float, metavar="S", help="at the ends of the sliders, with either sign (default 3)"
    )
    explore.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    explore.add_argument(
        "--port", type=int, default=8765, help="to listen on; 0 for any that is free (default %(default)s)"
    )
    explore.add_argument(
        "--token", help='what readers have to know, at least 16 characters, or "auto": wanted where others reach --host'
    )
    finish(explore, explore_archive)


def explore_archive(parsed: argparse.Namespace) -> int:
    """`lsap archive explore`, until Ctrl-C, which is how it ends well."""
    import lsap_archive

    archive = lsap_archive.open_archive(parsed.url)
    live = live_edits(archive, parsed)
    sliders = [] if live is None else [one.name for one in live.directions]

    def announce(address: str) -> None:
        print_result({"page": address, "sliders": sliders}, parsed.json, [f"{address} shows {archive.url}"])
        sys.stdout.flush()  # somebody may wait for the address at the other end of a pipe

    end_well_when_interrupted(ENDED)
    lsap_archive.explore_archive(
        archive, host=parsed.host, port=parsed.port, token=parsed.token, live=live, announce=announce
    )
    return DONE


def live_edits(archive: Archive, parsed: argparse.Namespace) -> LiveEdits | None:
    """What renders edits while somebody looks; None where no generator is named and no built-in one is the archive's.

    Raises:
        ParameterError: the archive's codes are of another generator, sliders are asked for without one, or a direction
            that is named does not fit.
        ConfigError, CheckpointError: the generator cannot be read, or sliders of one name or without length.
    """
    from flows.parameters.run_file import ParameterError
    from tasks.editing.live import FARTHEST, LiveEdits
    from tasks.weights.devices import module_device, place

    if not parsed.domain and not parsed.generator:
        parsed.domain = _embedded_domain_of(archive)
    if not parsed.domain and not parsed.generator:
        how = f"name the archive's generator ({archive.generator['name']}): --domain NAME or --generator FILE"
        if parsed.direction or parsed.strength is not None:
            raise ParameterError(f"sliders are asked for, and nothing makes their pictures: {how}")
        logger.info("no sliders: to have some %s", how)
        return None
    loaded, domain = open_generator(parsed)
    renderer = renderer_of(archive, loaded, domain)
    place(loaded.generator, module_device(parsed.device))  # as runs have it, whose images come out to the last bit
    use_threads_for(loaded.config.content_size)
    sliders = _sliders(parsed.direction, dict(domain.directions) if domain else {}, loaded)
    farthest = FARTHEST if parsed.strength is None else parsed.strength
    return LiveEdits(archive, renderer, sliders, farthest=farthest) if sliders else None


def _sliders(asked: list[str], directions: dict[str, str], loaded: LoadedGenerator) -> list[Slider]:
    """Those that are asked for, or all of the domain that can be followed; of the others it is told why not."""
    from flows.parameters.run_file import ParameterError
    from lsap_core.errors import CheckpointError, ConfigError, ShapeError
    from tasks.editing.live import sliders_of

    found = []
    for name in asked or directions:
        try:
            found += sliders_of(name, directions, config=loaded.config, generator_digest=loaded.digest)
        except (CheckpointError, ConfigError, ShapeError) as error:
            if asked:
                raise ParameterError(f"--direction {name}: {error}") from error
            logger.info("no slider for %s: %s", name, error)
    if not found:
        logger.info("no sliders: to have some name directions, --direction FILE")
    return found


def _embedded_domain_of(archive: Archive) -> str | None:
    """The domain with weights in the package that an archive's codes are of."""
    from domains.domain import load_domain
    from domains.embedded import embedded_folders
    from tasks.weights.generators import load_generator

    for name in embedded_folders():
        domain = load_domain(name)
        if domain.generator and load_generator(domain.generator).digest == archive.generator["digest"]:
            return name
    return None
