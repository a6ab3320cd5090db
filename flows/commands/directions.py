"""`lsap direction`: find directions, look at them, try them on the codes of an archive."""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.commands.converted_directions import add_convert_arguments, convert_direction
from flows.commands.generators import add_generator_arguments, open_generator, renderer_of
from flows.commands.numbers import parse_count, parse_seed
from flows.commands.output import show

if TYPE_CHECKING:  # help should not wait for torch
    from domains.domain import Domain
    from lsap_core.editing import Direction, Edit
    from lsap_core.generators.generator import Generator
    from tasks.measuring.attributes import AnyAttribute
    from tasks.weights.generators import LoadedGenerator

Command = Callable[[argparse.Namespace], int]


def add_direction_commands(groups: Any, finish: Callable[[argparse.ArgumentParser, Command], None]) -> None:
    """Add `direction` and its verbs to the groups of commands."""
    verbs = groups.add_parser("direction", help="find and try directions to edit along").add_subparsers(
        dest="verb", metavar="COMMAND", required=True
    )
    sample = verbs.add_parser("sample", help="synthetic images and their codes, to be scored by a program of one's own")
    add_generator_arguments(sample)
    _add_samples(sample, 20_000)
    sample.add_argument("--out", required=True, metavar="FOLDER", help="where nothing is yet")
    finish(sample, sample_images)

    fit = verbs.add_parser("fit", help="where an attribute grows (InterFaceGAN)")
    add_generator_arguments(fit)
    scored = fit.add_mutually_exclusive_group(required=True)
    scored.add_argument("--attribute", metavar="NAME", help="measured on synthetic images, such as slant")
    scored.add_argument("--scores", metavar="FILE", help=".npy or .csv, one score for each of --codes")
    fit.add_argument("--codes", metavar="FILE.npy", help="W codes [N, D] that --scores belong to")
    fit.add_argument("--name", help="what to call it; the attribute's name by default")
    _add_samples(fit, 20_000)
    fit.add_argument("--ratio", type=float, default=0.02, help="share (or number) of codes chosen on each side")
    fit.add_argument(
        "--conditional-on",
        nargs="+",
        default=[],
        metavar="NAME_OR_FILE",
        help="directions whose attributes are not to change",
    )
    _add_output(fit)
    finish(fit, fit_attribute)

    pca = verbs.add_parser("pca", help="principal components of W (GANSpace)")
    add_generator_arguments(pca)
    _add_samples(pca, 100_000, psi=1.0)
    pca.add_argument("--components", type=parse_count, default=80, help="how many to keep, at most the width of W")
    _add_output(pca)
    finish(pca, fit_components)

    sefa = verbs.add_parser("factorize", help="directions to which the weights answer most (SeFa)")
    add_generator_arguments(sefa)
    sefa.add_argument("--convs", type=int, nargs="+", help="style convolutions; 2 to 5 by default, as published")
    sefa.add_argument("--no-normalize", action="store_true", help="leave the rows of the weights as long as they are")
    sefa.add_argument("--components", type=parse_count, help="how many to keep; all by default")
    _add_output(sefa)
    finish(sefa, factorize_weights)

    convert = verbs.add_parser("convert", help="a direction as it circulates, to a file that knows its generator")
    add_convert_arguments(convert)
    add_generator_arguments(convert)
    _add_output(convert)
    finish(convert, convert_file)

    apply = verbs.add_parser("apply", help="a strip of edited images of an archive")
    apply.add_argument("archive", help="path or URL of the archive")
    add_generator_arguments(apply)
    apply.add_argument("--method", required=True, help="whose codes")
    apply.add_argument("--image", nargs="+", required=True, metavar="ID", help="image ids")
    along = apply.add_mutually_exclusive_group(required=True)
    along.add_argument("--direction", metavar="NAME_OR_FILE", help="the domain's, a file, or FILE#NAME")
    along.add_argument("--style-channel", type=int, nargs=2, metavar=("LAYER", "CHANNEL"), help="one channel of S")
    apply.add_argument("--component", type=int, metavar="INDEX", help="which one, of a file of components")
    apply.add_argument("--mode", choices=["absolute", "offset"], help="what a component's strength means")
    apply.add_argument("--strength", type=float, nargs="+", required=True, metavar="S")
    apply.add_argument("--layers", type=int, nargs=2, metavar=("FIRST", "END"), help="rows that change; all by default")
    apply.add_argument("--any-generator", action="store_true", help="also take one that was found on another generator")
    apply.add_argument("--out", required=True, metavar="SHEET.png")
    finish(apply, apply_direction)

    describe = verbs.add_parser("describe", help="what a file of directions holds")
    describe.add_argument("path", help="a file, or FILE#NAME, one of many directions in it")
    add_generator_arguments(describe)
    finish(describe, describe_file)


def sample_images(parsed: argparse.Namespace) -> int:
    """`lsap direction sample`."""
    from tasks.editing.fit_direction import SampleOptions, save_samples

    loaded, _ = _open(parsed)
    options = SampleOptions(parsed.samples, parsed.psi, parsed.seed)
    save_samples(loaded.generator, options, Path(parsed.out), batch_size=parsed.batch_size)
    return show({"folder": parsed.out, "generator": loaded.digest, **dataclasses.asdict(options)}, parsed)


def fit_attribute(parsed: argparse.Namespace) -> int:
    """`lsap direction fit`."""
    from tasks.editing.fit_direction import SampleOptions, direction_of, fit_boundary, measure_response
    from tasks.editing.spec import place_of
    from tasks.weights.directions import load_direction, save_direction

    started = time.monotonic()
    _check_output(parsed.out)
    loaded, domain = _open(parsed)
    places = [place_of(asked, _directions(domain)) for asked in parsed.conditional_on]
    conditions = [load_direction(place, config=loaded.config, generator_digest=loaded.digest) for place in places]
    attribute = _attribute(parsed)
    options = SampleOptions(parsed.samples, parsed.psi, parsed.seed)
    codes, scores, told = _scored_codes(parsed, loaded.generator, attribute, options)
    boundary = fit_boundary(codes, scores, ratio=parsed.ratio, seed=parsed.seed)
    direction = direction_of(
        boundary,
        name=parsed.name or (attribute.name if attribute else Path(parsed.scores).stem),
        generator_digest=loaded.digest,
        provenance={"found_by": "interfacegan", **told, "ratio": parsed.ratio, "seed": parsed.seed},
        conditions=conditions,
    )
    if attribute is not None:
        response = measure_response(loaded.generator, direction, codes, scores, attribute, batch_size=parsed.batch_size)
        about = {"unit": attribute.unit, **dataclasses.asdict(response)}
        direction = dataclasses.replace(direction, provenance={**direction.provenance, "response": about})
    save_direction(parsed.out, direction)
    return show(_about_fit(parsed.out, direction, time.monotonic() - started), parsed)


def fit_components(parsed: argparse.Namespace) -> int:
    """`lsap direction pca`."""
    from lsap_core.editing import fit_pca
    from tasks.editing.fit_direction import SampleOptions, sampled_codes
    from tasks.weights.described_directions import describe_direction
    from tasks.weights.directions import save_components

    _check_output(parsed.out)
    loaded, _ = _open(parsed)
    options = SampleOptions(parsed.samples, parsed.psi, parsed.seed)
    components = fit_pca(
        sampled_codes(loaded.generator, options),
        num_components=min(parsed.components, loaded.config.w_dim),
        generator=loaded.digest,
        provenance={"found_by": "ganspace", **dataclasses.asdict(options)},
    )
    save_components(parsed.out, components)
    return show(describe_direction(parsed.out), parsed)


def factorize_weights(parsed: argparse.Namespace) -> int:
    """`lsap direction factorize`."""
    from lsap_core.editing import factorize
    from tasks.weights.described_directions import describe_direction
    from tasks.weights.directions import save_components

    _check_output(parsed.out)
    loaded, _ = _open(parsed)
    components = factorize(
        loaded.generator,
        parsed.convs,
        normalize=not parsed.no_normalize,
        num_components=parsed.components,
        digest=loaded.digest,
    )
    save_components(parsed.out, components)
    return show(describe_direction(parsed.out), parsed)


def apply_direction(parsed: argparse.Namespace) -> int:
    """`lsap direction apply`."""
    from lsap_archive import open_archive
    from tasks.archived.rendering import Stored
    from tasks.editing.spec import build_edit, parse_edit
    from tasks.pictures.sheets import draw_strips

    if not parsed.out.endswith(".png"):
        raise _wrong(f"--out is {parsed.out}; wanted a .png file")
    archive = open_archive(parsed.archive)
    loaded, domain = _open(parsed)
    renderer = renderer_of(archive, loaded, domain)
    specs = [parse_edit("apply", _edit_document(parsed, strength), _directions(domain)) for strength in parsed.strength]
    edits: list[Edit] = [build_edit(spec, config=loaded.config, generator_digest=loaded.digest) for spec in specs]
    stored = Stored.of_images(renderer, archive, parsed.image, parsed.method)
    columns = [stored.show(), *(stored.edited(edit) for edit in edits)]
    labels = ["inversion", *(f"{strength:+g}" if strength else "0" for strength in parsed.strength)]
    Path(parsed.out).parent.mkdir(parents=True, exist_ok=True)
    Path(parsed.out).write_bytes(draw_strips(columns, labels, parsed.image))
    document = {
        "sheet": parsed.out,
        "archive": archive.url,
        "method": parsed.method,
        "images": parsed.image,
        "noise": "constant" if isinstance(stored.noise, str) else "the inversion's own",
        "edits": [edit.describe() for edit in edits],
    }
    return show(document, parsed)


def convert_file(parsed: argparse.Namespace) -> int:
    """`lsap direction convert`."""
    from lsap_core.errors import ShapeError

    _check_output(parsed.out)
    try:
        return convert_direction(parsed, _open)
    except ShapeError as error:  # what the file holds is no direction of this generator
        raise _wrong(str(error)) from error


def describe_file(parsed: argparse.Namespace) -> int:
    """`lsap direction describe`."""
    from lsap_core.errors import ShapeError
    from tasks.weights.described_directions import describe_direction

    config = None
    if parsed.domain or parsed.generator:
        loaded, _ = _open(parsed)
        config = loaded.config
    try:
        return show(describe_direction(parsed.path, config), parsed)
    except ShapeError as error:  # what the file holds is no direction, or none of this generator
        raise _wrong(str(error)) from error


# --- arguments ----------------------------------------------------------------------------------------


def _add_samples(parser: argparse.ArgumentParser, count: int, *, psi: float = 0.7) -> None:
    parser.add_argument(
        "--samples", type=parse_count, default=count, help="synthetic codes to draw (default %(default)s)"
    )
    parser.add_argument("--psi", type=float, default=psi, help="truncation of the codes (default %(default)s)")
    parser.add_argument("--seed", type=parse_seed, default=0, help="of the codes and the split (default %(default)s)")
    together = "images made together (default: as many as take 2 GiB, at most 64)"
    parser.add_argument("--batch-size", type=parse_count, help=together)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="FILE.safetensors", help="where nothing is yet")


def _wrong(message: str) -> Exception:
    from flows.parameters.run_file import ParameterError

    return ParameterError(message)


def _check_output(location: str) -> None:
    """Refuse before the work what `write_verified` would refuse after it."""
    from lsap_archive import open_file_system

    filesystem, path = open_file_system(location)
    if not location.endswith(".safetensors"):
        raise _wrong(f"--out is {location}; wanted a name that ends in .safetensors")
    if filesystem.exists(path):
        raise _wrong(f"--out is {location}, which exists already: remove it or name another file")


def _open(parsed: argparse.Namespace) -> tuple[LoadedGenerator, Domain | None]:
    """The generator, with room for the samples where some are asked for, and the domain where one is named."""
    from tasks.weights.devices import FLOAT_BYTES, bytes_of_image, check_room, images_together

    loaded, domain = open_generator(parsed)
    if "samples" in parsed:
        check_room("--samples", parsed.samples, FLOAT_BYTES * loaded.config.w_dim, "cpu")
        bytes_each = bytes_of_image(loaded.config, goes_back=False)
        if parsed.batch_size is None:
            parsed.batch_size = images_together(loaded.config)
        check_room("--batch-size", parsed.batch_size, bytes_each, parsed.device)
    return loaded, domain


def _directions(domain: Domain | None) -> dict[str, str]:
    return dict(domain.directions) if domain else {}


def _edit_document(parsed: argparse.Namespace, strength: float) -> dict[str, Any]:
    if not math.isfinite(strength):
        raise _wrong(f"--strength is {strength}; wanted finite numbers")
    if parsed.style_channel is not None:
        if parsed.component is not None or parsed.mode or parsed.layers:
            raise _wrong("--component, --mode and --layers belong to directions: leave them out with --style-channel")
        return {"style_channel": parsed.style_channel, "strength": strength}
    document: dict[str, Any] = {"strength": strength, "layers": parsed.layers, "any_generator": parsed.any_generator}
    if parsed.component is None:
        if parsed.mode:
            raise _wrong("--mode belongs to components: pass --component INDEX too")
        return {"direction": parsed.direction, **document}
    return {"components": parsed.direction, "component": parsed.component, "mode": parsed.mode, **document}


def _attribute(parsed: argparse.Namespace) -> AnyAttribute | None:
    from tasks.measuring.attributes import load_attribute
    from tasks.settings import Settings
    from tasks.weights.devices import module_device
    from tasks.weights.published import Published

    if parsed.attribute is None:
        if parsed.codes is None:
            raise _wrong("--scores needs --codes FILE.npy, the W codes that were scored")
        return None
    if parsed.codes is not None:
        raise _wrong("--codes belongs to --scores; an attribute is measured on codes that are sampled here")
    published = Published(Settings.from_environment().backbones)
    return load_attribute(parsed.attribute, device=module_device(parsed.device), published=published)


def _scored_codes(
    parsed: argparse.Namespace, generator: Generator, attribute: AnyAttribute | None, options: Any
) -> tuple[Any, Any, dict[str, Any]]:
    """W codes, their scores, and where both are from."""
    import torch

    from tasks.editing.fit_direction import read_codes, read_scores, sampled_codes, score_codes

    if attribute is None:
        codes, scores = read_codes(parsed.codes, generator.config.w_dim), read_scores(parsed.scores)
        return codes, scores, {"scores": Path(parsed.scores).name, "num_samples": len(codes)}
    codes = torch.cat(list(sampled_codes(generator, options)))
    scores = score_codes(generator, codes, attribute, batch_size=parsed.batch_size)
    return codes, scores, {"attribute": attribute.name, **dataclasses.asdict(options)}


def _about_fit(place: str, direction: Direction, seconds: float) -> dict[str, Any]:
    return {
        "location": place,
        "name": direction.name,
        "shape": list(direction.vectors.shape),
        "norm": round(direction.vectors.norm().item(), 6),
        "digest": direction.digest,
        "generator": direction.generator,
        **direction.provenance,
        "seconds": round(seconds, 1),
    }
