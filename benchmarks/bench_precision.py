"""What `precision: bfloat16` costs in quality: the same images by the same optimization in float32 and in bfloat16.

Differences are taken image by image, of what a report gives; with them their standard error and the largest. TF32
cannot be had on a CPU; with `--device cuda` it is measured too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measurement import append, environment
from torch import Tensor

from domains.domain import load_domain
from lsap_core.alignment.anchor import estimate_anchor
from lsap_core.images import from_uint8
from lsap_core.inversion import Inversion, OptimizationEmbedder, OptimizationSettings
from lsap_core.inversion.precision import Precision
from tasks.measuring.of_inversions import measure
from tasks.pictures.decoding import decode_image
from tasks.sources.source import open_source
from tasks.weights.devices import place
from tasks.weights.generators import load_generator
from tasks.weights.networks import NetworkChoice, load_networks

DOMAIN, SOURCE = "digits", "digits:test"


class Bench:
    """The domain's networks, and its first held-out images."""

    def __init__(self, options: argparse.Namespace):
        device = torch.device(options.device)
        domain = load_domain(DOMAIN)
        loaded = load_generator(str(domain.generator))
        self.batch_size = options.batch_size
        self.anchor = estimate_anchor(loaded.generator, num_samples=10_000).to(device)
        self.generator = place(loaded.generator, device).freeze()  # type: ignore[operator]
        metric = domain.metric_perceptual or domain.perceptual
        self.networks = load_networks(NetworkChoice(domain.perceptual, metric, domain.identity, domain.judge), device)
        config = loaded.config
        with open_source(SOURCE) as source:
            data = [source.read(item) for item in islice(source.items(), options.images)]
        pixels = [decode_image(one, size=config.content_size, channels=config.image_channels).pixels for one in data]
        self.target = from_uint8(np.stack(pixels)).to(device)

    def measured(self, settings: OptimizationSettings) -> dict[str, list[float]]:
        """Every metric of every image."""
        embedder = OptimizationEmbedder(self.generator, self.anchor, self.networks.perceptual, settings)
        columns: dict[str, list[float]] = {}
        for start in range(0, len(self.target), self.batch_size):
            target = self.target[start : start + self.batch_size]
            for name, values in self._of_batch(embedder, target, range(start, start + len(target))).items():
                columns.setdefault(name, []).extend(values)
        return columns

    def _of_batch(self, embedder: OptimizationEmbedder, target: Tensor, seeds: range) -> dict[str, list[float]]:
        found: Inversion = embedder(target, seeds)
        return measure(
            found.reconstruction,
            target,
            found.w_plus,
            generator=self.generator,
            anchor=self.anchor,
            networks=self.networks,
        )


def compared(columns: dict[str, list[float]], exact: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Mean of every metric, and its differences to those in float32."""
    told = {}
    for name, values in columns.items():
        differences = [a - b for a, b in zip(values, exact[name], strict=True)]
        told[name] = {
            "mean": statistics.fmean(values),
            "difference": statistics.fmean(differences),
            "standard_error": statistics.stdev(differences) / len(differences) ** 0.5,
            "largest": max(map(abs, differences)),
        }
    return told


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["stylegan2_w_plus", "lsap_o_w_plus"])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, help="the domain's when not given")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, help="file of JSON lines to append to; the screen when not given")
    parser.add_argument("--commit", help="what was measured, where the code lies outside git")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    precisions: list[Precision] = ["float32", "bfloat16"] + (["tf32"] if options.device == "cuda" else [])  # type: ignore[assignment]
    line: dict[str, Any] = {"benchmark": "precision", **environment(torch.device(options.device), options.commit)}
    line |= {"load_average": [round(one, 2) for one in os.getloadavg()], "images": options.images, "methods": {}}
    bench = Bench(options)
    for method in options.methods:
        shared = {} if options.steps is None else {"num_steps": options.steps}
        settings = load_domain(DOMAIN).method(method, {}, shared=shared).settings
        assert isinstance(settings, OptimizationSettings)
        columns = {one: bench.measured(replace(settings, precision=one)) for one in precisions}
        found = {one: compared(values, columns["float32"]) for one, values in columns.items()}
        line["methods"][method] = {"num_steps": settings.num_steps, "precisions": found}
        for one in precisions:
            for name, told in found[one].items():
                print(
                    f"{method} {one:>9} {name:>20}: {told['mean']:.6f}, {told['difference']:+.6f} +- "
                    f"{told['standard_error']:.6f}, at most {told['largest']:.6f}",
                    flush=True,
                )
    append(json.dumps(line), options.output)


if __name__ == "__main__":
    main()
