"""`lsap generator` and `lsap encoder`: what files of weights hold."""

from __future__ import annotations

import argparse

from flows.commands.output import show


def show_generator(parsed: argparse.Namespace) -> int:
    """`lsap generator describe`."""
    from tasks.weights.generators import describe_generator

    description = describe_generator(parsed.path, label=parsed.label)
    return show(description, parsed)


def rewrite_generator(parsed: argparse.Namespace) -> int:
    """`lsap generator convert`."""
    from tasks.weights.generators import convert_generator, describe_generator

    convert_generator(
        parsed.path,
        parsed.output,
        label=parsed.label,
        conv_clamp=parsed.conv_clamp,
        mapping_lr_multiplier=parsed.mapping_lr_multiplier,
    )
    description = describe_generator(parsed.output)
    return show(description, parsed)


def show_encoder(parsed: argparse.Namespace) -> int:
    """`lsap encoder describe`."""
    from tasks.weights.encoders import describe_encoder

    description = describe_encoder(parsed.path, heads=parsed.heads)
    return show(description, parsed)
