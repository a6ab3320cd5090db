"""The generator that a command names, alone or by a domain, and what makes images of an archive with it."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # help should not wait for torch
    from domains.domain import Domain
    from lsap_archive import Archive
    from lsap_core.generators.config import GeneratorConfig
    from tasks.archived.rendering import Renderer
    from tasks.weights.generators import GeneratorFile, LoadedGenerator

WORTH_THREADS = 128
"""Pixels of an image's longer side from which on threads help more than they cost."""


def add_generator_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `open_generator` asks for."""
    parser.add_argument("--domain", help="name of a built-in domain, or the path of one's own .yaml")
    parser.add_argument("--generator", metavar="FILE", help="weights; the domain's by default")
    parser.add_argument("--label", type=int, metavar="N", help="class of a conditional generator, from 0")
    parser.add_argument("--device", default="auto", help='"auto", "cpu", "cuda", ...')


def named_generator(parsed: argparse.Namespace) -> tuple[GeneratorFile, Domain | None]:
    """Where the generator lies, and the domain where one is named.

    Raises:
        ParameterError: none is named.
        ConfigError, CheckpointError: as `open_domain`.
    """
    from flows.parameters.run_file import ParameterError
    from tasks.settings import Settings
    from tasks.weights.generators import GeneratorFile
    from tasks.weights.of_domains import open_domain

    domain = open_domain(parsed.domain, Settings.from_environment()) if parsed.domain else None
    place = parsed.generator or (domain and domain.generator)
    if not place:
        raise ParameterError("no generator is named: pass --generator FILE, or --domain of a domain that has one")
    label = parsed.label if parsed.label is not None or domain is None else domain.label
    return GeneratorFile(place, domain.content_box if domain else None, label), domain


def open_generator(parsed: argparse.Namespace) -> tuple[LoadedGenerator, Domain | None]:
    """The generator, frozen, on its device, and the domain where one is named.

    Raises:
        ParameterError: none is named.
        ConfigError, CheckpointError: it cannot be read, or there is no such device.
    """
    from tasks.weights.devices import module_device

    file, domain = named_generator(parsed)
    loaded = file.load()
    loaded.generator.to(module_device(parsed.device)).freeze()
    return loaded, domain


def check_made_archive(archive: Archive, digest: str, config: GeneratorConfig) -> None:
    """Make sure that a generator is that of an archive.

    Args:
        archive: whose codes are to be used with it.
        digest: of the generator.
        config: its sizes.

    Raises:
        ParameterError: the archive's codes are of another generator, or of other sizes than it says.
    """
    from flows.parameters.run_file import ParameterError
    from tasks.archived.opening import geometry_of

    if (wanted := archive.generator["digest"]) != digest:
        raise ParameterError(
            f"{archive.url} holds codes of generator {wanted[:16]}, and this is {digest[:16]}: pass the "
            "generator of the archive (--generator or --domain)"
        )
    if archive.geometry != geometry_of(config):  # an archive may say of itself what it likes
        raise ParameterError(
            f"{archive.url} says that it is of generator {wanted[:16]}, and holds codes of {archive.geometry}, which "
            "that does not take: its archive.json is wrong, restore it"
        )


def renderer_of(archive: Archive, loaded: LoadedGenerator, domain: Domain | None) -> Renderer:
    """What makes the images of an archive.

    Raises:
        ParameterError: as `check_made_archive`.
    """
    from tasks.archived.rendering import Renderer

    check_made_archive(archive, loaded.digest, loaded.config)
    return Renderer(loaded.generator, domain.refiners if domain else {})


def use_threads_for(size: tuple[int, int]) -> None:
    """Let one image of height and width be made by all CPUs that this process has, where they help."""
    import torch

    if max(size) >= WORTH_THREADS:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
