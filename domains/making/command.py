"""The command that makes a small domain: `python -m domains.<name>.recipe features | judge | generator`."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, replace
from pathlib import Path

from domains.making.generator import train_generator
from domains.making.networks import accuracy, train_network
from domains.making.recipe import Recipe
from domains.network_files import save_network


def make(recipe: Recipe) -> None:
    """Train what is asked for and write it beside the recipe; the generator needs both networks.

    Every number of the generator's recipe can be given as an option.
    """
    parser = argparse.ArgumentParser(description=make.__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    for name in recipe.networks:
        parts.add_parser(name).add_argument("--output", type=Path, default=recipe.folder / f"{name}.safetensors")
    generator = parts.add_parser("generator")
    generator.add_argument("--output", type=Path, default=recipe.folder / "generator.safetensors")
    generator.add_argument("--log", type=Path, default=recipe.folder / "training.jsonl")
    for name, value in asdict(recipe.generator).items():
        if isinstance(value, int | float):
            generator.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = vars(parser.parse_args())
    part, output = given.pop("part"), given.pop("output")
    if part == "generator":
        log = given.pop("log")
        train_generator(replace(recipe, generator=replace(recipe.generator, **given)), output=output, log=log)
        return
    started = time.monotonic()
    network = train_network(recipe.networks[part], *recipe.load("train"))
    save_network(output, network)
    right = accuracy(network, *recipe.load("test"))
    print(f"{output.name}: accuracy {right:.4f} on held-out {recipe.noun}s, {time.monotonic() - started:.0f} s")
