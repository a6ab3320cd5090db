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

NOT_STORED = (
    "state_beyond_float16",
    "what the refiner found of it cannot be kept in half precision: take another refiner, or fewer steps",
)


@dataclass(frozen=True)
class FoundPhotos:
    """What is found of N photos.

    Attributes:
        stored: as an archive would keep them: edits are rendered from there.
        images: of them, [N, C, R, R], unclamped.
        title: what the paper calls how they were found.
        problems: of each photo whose numbers were not finite, reason and message; None of all others.
    """

    stored: Stored
    images: Tensor
    title: str
    problems: list[tuple[str, str] | None]


def refined(
    refiner: NamedRefiner,
    embedding: str,
    found: FoundPhotos,
    target: Tensor,
    seeds: Sequence[int],
    *,
    files: Mapping[str, str],
    segmenter: str,
    published: Published,
    perceptual: PerceptualDistance,
    tell: Callable[[float], None],
) -> FoundPhotos:
    """Refine inversions; what failed already stays failed.

    Args:
        refiner: with its settings.
        embedding: name of the method that found the codes: networks may belong to one.
        found: the inversions of N photos.
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
    stored = found.stored
    generator = stored.generator
    networks = None
    if refiner.settings.needs_networks:
        name = name_of_networks(f"{embedding}/{refiner.networks or refiner.name}", files)
        if name is None:
            raise MissingWeightsError(
                f"refiner {refiner.name} needs its networks, and the domain names no file of them"
            )
        loaded = load_refiner_networks(files[name], generator.config)
        if loaded.kind != refiner.settings.kind:
            raise ConfigError(
                f"{files[name]} holds networks of {loaded.kind}, {refiner.name} wants those of {refiner.settings.kind}"
            )
        networks = loaded.networks
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
    is_finite = torch.stack([values.isfinite().flatten(1).all(dim=1) for values in (images, *kept.values())]).all(dim=0)
    problems = list(found.problems)
    for index, step in enumerate(done.stopped_at.tolist()):
        if problems[index] is None and step >= 0:
            problems[index] = built.settings.why_stopped(step)
        elif problems[index] is None and not is_finite[index]:
            problems[index] = NOT_STORED
    return FoundPhotos(
        replace(stored, codes=as_kept.w_plus, refiner=built, kept=kept),
        images,
        f"{found.title}, refined by {refiner.title}",
        problems,
    )
