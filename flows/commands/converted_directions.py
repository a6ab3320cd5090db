"""`lsap direction convert`: what circulates, as a file that says which generator it is of and where it came from."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from flows.commands.numbers import parse_count, parse_seed
from flows.commands.output import show

if TYPE_CHECKING:  # help should not wait for torch
    from domains.domain import Domain
    from lsap_core.editing import Components, Direction, StyleDirection
    from tasks.weights.generators import LoadedGenerator

Opened = Callable[[argparse.Namespace], "tuple[LoadedGenerator, Domain | None]"]


def add_convert_arguments(convert: argparse.ArgumentParser) -> None:
    """Everything but the generator and the output."""
    what = convert.add_mutually_exclusive_group(required=True)
    what.add_argument("source", nargs="?", metavar="FILE", help="as it circulates, or FILE#NAME, one of many in it")
    what.add_argument("--style-channel", type=int, nargs=2, metavar=("LAYER", "CHANNEL"), help="one channel of S")
    convert.add_argument("--name", help="what to call it; the file's or the entry's name by default")
    convert.add_argument("--any-generator", action="store_true", help="also take one that names another generator")
    convert.add_argument("--text", metavar="FILE.npy", help="of StyleCLIP's fs3.npy: a text's direction in CLIP, [512]")
    convert.add_argument("--beta", type=float, help="with --text: least relevance of what moves (default 0.1)")
    for option, of_type, meaning in (
        ("samples", parse_count, "codes for deviations of S (default 20000)"),
        ("psi", float, "truncation of these codes (default 0.7)"),
        ("seed", parse_seed, "of these codes (default 0)"),
    ):
        convert.add_argument(f"--{option}", dest=f"text_{option}", type=of_type, help=f"with --text: {meaning}")


def convert_direction(parsed: argparse.Namespace, open_generator: Opened) -> int:
    """The command.

    Args:
        parsed: its arguments.
        open_generator: gives the generator that they name.
    """
    from lsap_core.editing import Components
    from tasks.weights.described_directions import describe_direction
    from tasks.weights.directions import save_components, save_direction

    _check(parsed)
    loaded, _ = open_generator(parsed)
    found = _of_text(parsed, loaded) if parsed.text else _subject(parsed, loaded)
    if isinstance(found, Components):
        save_components(parsed.out, found)
    else:
        save_direction(parsed.out, found)
    return show(describe_direction(parsed.out, loaded.config), parsed)


def _check(parsed: argparse.Namespace) -> None:
    given = {"beta": parsed.beta, "samples": parsed.text_samples, "psi": parsed.text_psi, "seed": parsed.text_seed}
    of_text = [name for name, value in given.items() if value is not None]
    if of_text and not parsed.text:
        raise _wrong(f"--{of_text[0]} belongs to --text: leave it out, or pass --text FILE.npy")
    if parsed.text and parsed.style_channel:
        raise _wrong("--text belongs to StyleCLIP's fs3.npy: leave it out with --style-channel")


def _subject(parsed: argparse.Namespace, loaded: LoadedGenerator) -> Direction | StyleDirection | Components:
    """What circulates, of the generator that is named, with where it came from."""
    from lsap_core.editing import Components, StyleDirection
    from tasks.weights.directions import load_subject

    if parsed.style_channel:
        layer, number = parsed.style_channel
        channel = StyleDirection.of_channel(layer, number, loaded.config)
        return dataclasses.replace(
            channel,
            name=parsed.name or channel.name,
            generator=loaded.digest,
            provenance={"style_channel": [layer, number]},
        )
    found = load_subject(
        parsed.source,
        config=loaded.config,
        generator_digest=loaded.digest,
        any_generator=parsed.any_generator,
    )
    told = {name: value for name, value in found.provenance.items() if name != "warning"}
    told |= {"converted_from": PurePosixPath(parsed.source).name}
    if found.generator is None:
        told["generator_named_by"] = "whoever converted it"
    changes: dict[str, Any] = {"generator": found.generator or loaded.digest, "provenance": told}
    if isinstance(found, Components):
        if parsed.name:
            raise _wrong(f"{parsed.source} holds components, which have no name: leave --name out")
    else:
        changes["name"] = parsed.name or found.name
    return dataclasses.replace(found, **changes)


def _of_text(parsed: argparse.Namespace, loaded: LoadedGenerator) -> StyleDirection:
    """A text's direction, from StyleCLIP's effects of channels."""
    from lsap_core.editing import channel_deviations, direction_of_text
    from tasks.editing.fit_direction import SampleOptions, sampled_codes
    from tasks.weights.clip_effects import read_clip_array

    effects, effects_digest = read_clip_array(parsed.source, num_axes=2)
    text, text_digest = read_clip_array(parsed.text, num_axes=1)
    options = SampleOptions(
        20_000 if parsed.text_samples is None else parsed.text_samples,
        0.7 if parsed.text_psi is None else parsed.text_psi,
        parsed.text_seed or 0,
    )
    beta = 0.1 if parsed.beta is None else parsed.beta
    return direction_of_text(
        effects,
        text,
        beta=beta,
        deviations=channel_deviations(loaded.generator, sampled_codes(loaded.generator, options)),
        name=parsed.name or PurePosixPath(parsed.text).stem,
        config=loaded.config,
        generator=loaded.digest,
        provenance={
            "found_by": "styleclip",
            "effects": {"file": PurePosixPath(parsed.source).name, "sha256": effects_digest},
            "text": {"file": PurePosixPath(parsed.text).name, "sha256": text_digest},
            "beta": beta,
            **dataclasses.asdict(options),
        },
    )


def _wrong(message: str) -> Exception:
    from flows.parameters.run_file import ParameterError

    return ParameterError(message)
