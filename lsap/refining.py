"""The second stage of an inversion in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lsap_core.errors import ConfigError, MissingWeightsError
from lsap_core.inversion.inversion import EmbedderState, PerceptualDistance
from lsap_core.presets import NamedRefiner
from lsap_core.refinement import Embedded, RefinementParts, as_stored
from lsap_core.refinement.sam_networks import SamNetworks
from tasks.archived.rendering import W_PLUS, Stored
from tasks.weights.devices import place
from tasks.weights.published import Published
from tasks.weights.refiners import load_refiner_networks, name_of_networks
from tasks.weights.segmenters import choose_segmenter, load_segmenter


@dataclass(frozen=True)
class RefinedPhotos:
    """Refined inversions of N photos.

    Attributes:
        stored: as an archive would keep them: edits are rendered from there.
        images: of them, [N, C, R, R], unclamped.
        title: what the refiner's paper calls it.
        stopped_at: of each the step at which its numbers were no longer finite, or -1.
    """

    stored: Stored
    images: Tensor
    title: str
    stopped_at: list[int]


def refined(
    refiner: NamedRefiner,
    embedding: str,
    stored: Stored,
    target: Tensor,
    seeds: Sequence[int],
    *,
    files: Mapping[str, str],
    segmenter: str,
    published: Published,
    perceptual: PerceptualDistance,
    tell: Callable[[float], None],
) -> RefinedPhotos:
    """Refine inversions.

    Args:
        refiner: with its settings.
        embedding: name of the method that found the codes: networks may belong to one.
        stored: the inversions of N photos.
        target: the photos, [N, C, R, R] in [-1, 1].
        seeds: of each photo's random state.
        files: paths or URLs of the networks of refiners, by name.
        segmenter: what finds the segments of photos, by name, for refiners that ask.
        published: where published files lie.
        perceptual: the network of the loss.
        tell: called after every step with the share of the work that is done.

    Raises:
        MissingWeightsError: nobody names a file of its networks.
        ConfigError: the file holds networks of another refiner.
    """
    generator = stored.generator
    networks = None
    if refiner.settings.needs_networks:
        name = name_of_networks(f"{embedding}/{refiner.networks or refiner.name}", files)
        if name is None:
            raise MissingWeightsError(
                f"refiner {refiner.name} needs its networks, and the domain names no file of them"
            )
        found = load_refiner_networks(files[name], generator.config)
        if found.kind != refiner.settings.kind:
            raise ConfigError(
                f"{files[name]} holds networks of {found.kind}, {refiner.name} wants those of {refiner.settings.kind}"
            )
        networks = found.networks
        if isinstance(networks, SamNetworks):
            chosen = choose_segmenter(segmenter, published)
            networks = SamNetworks(networks.predictor, load_segmenter(chosen, published))
        networks = place(networks, generator.mapping.w_avg.device)
    built = refiner.settings.refiner(RefinementParts(generator, perceptual, networks))
    state = built.start(Embedded(stored.codes, stored.noise), target, seeds)
    num_steps = built.settings.num_steps

    def after_step(now: EmbedderState) -> None:
        tell(now.step / num_steps)

    built.advance(state, target, after_step=after_step)
    done = built.finish(state)
    with torch.no_grad():
        as_kept = as_stored(built, done.refined, stored.noise)
        images = as_kept.synthesize()
    kept = {W_PLUS: as_kept.w_plus, **as_kept.arrays()}
    refined_ones = replace(stored, codes=as_kept.w_plus, refiner=built, kept=kept)
    return RefinedPhotos(refined_ones, images, refiner.title, done.stopped_at.tolist())
