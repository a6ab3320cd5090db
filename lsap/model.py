"""A domain ready to work in this process: its generator, its networks, its methods and directions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from domains.domain import Domain
from lsap.inversion import Inversion
from lsap.photos import Photo, Source, adapted, read_photo
from lsap.refining import FoundPhotos, refined
from lsap_core.alignment.anchor import Anchor
from lsap_core.editing import Edit
from lsap_core.encoders.encoder import Encoder
from lsap_core.errors import CheckpointError, ConfigError, ShapeError, did_you_mean
from lsap_core.generators.config import GeneratorConfig
from lsap_core.images import from_uint8
from lsap_core.inversion.inversion import Parts
from lsap_core.inversion.kept_noise import as_kept
from lsap_core.presets import METHODS, REFINERS, Method, encoder_settings
from tasks.archived.anchors import AnchorOptions, remembered_anchor
from tasks.archived.image_seeds import image_seed
from tasks.archived.rendering import Renderer, Stored
from tasks.editing.spec import build_edit, parse_edit
from tasks.errors import BadImageError
from tasks.measuring.familiarity import Familiarity
from tasks.measuring.of_inversions import measure
from tasks.pictures.decoding import Fit
from tasks.settings import Settings
from tasks.weights.devices import bytes_of_image, free_memory, module_device, place
from tasks.weights.encoders import check_generator, load_encoder
from tasks.weights.generators import GeneratorFile
from tasks.weights.networks import NetworkChoice, Networks, load_networks, network_digest
from tasks.weights.of_domains import check_weights, open_domain, published_of

DEFAULT_METHOD = "lsap_o_w_plus"
SHARE = 0.5
"""Of the free memory, that a batch may take by what it takes at the very least."""

Tell = Callable[[float], None]


def load(
    domain: str,
    *,
    generator: str | None = None,
    encoders: Mapping[str, str] | None = None,
    label: int | None = None,
    device: str = "auto",
) -> Model:
    """A domain with its weights.

    Args:
        domain: a built-in one, such as "digits" or "face", or the path of one's own .yaml.
        generator: weights in the place of the domain's: .pt, .pkl or .safetensors.
        encoders: files of encoders by name, over the domain's.
        label: the class of a conditional generator, from 0.
        device: "auto" (the first GPU, or the CPU), "cpu", "cuda", ...

    Raises:
        ConfigError: there is no such domain, or it has no weights and none are named.
        MissingWeightsError: its published weights are not on this machine; the message names the files.
        CheckpointError: a file is no generator that can be read.
    """
    settings = Settings.from_environment()
    found = open_domain(domain, settings)
    if generator is None:
        if found.generator is None:
            raise ConfigError(
                f'domain "{found.name}" has no weights of its own; name a file of a generator, or take a domain that '
                "has some, such as digits"
            )
        check_weights(found, published_of(found, settings), ["generator"])
    found = replace(found, generator=generator or found.generator, label=found.label if label is None else label)
    return Model(found.with_encoders(encoders or {}), settings, device=device)


class Model:
    """A domain ready to work; what it needs is loaded when it is first needed, and kept.

    Attributes:
        domain: what is known of its images.
        config: sizes of its generator.
        digest: of its generator.
    """

    def __init__(self, domain: Domain, settings: Settings, *, device: str = "auto"):
        """As `load` gives it; `domain` names its generator."""
        assert domain.generator is not None
        self.domain = domain
        self._settings = settings
        self._device = module_device(device)
        self._loaded = GeneratorFile(domain.generator, domain.content_box, domain.label).load()
        self._generator = place(self._loaded.generator, self._device).freeze()
        self.config: GeneratorConfig = self._loaded.config
        self.digest: str = self._loaded.digest
        self._encoders: dict[str, Encoder] = {}

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods whose weights the domain has; "/" and a name of `refiners` may follow each."""
        known = [name for name, method in METHODS.items() if method.encoder in (None, *self.domain.encoders)]
        return tuple(dict.fromkeys([*known, *self.domain.encoders]))

    @property
    def refiners(self) -> tuple[str, ...]:
        """Names of the refiners whose networks, if any, the domain has."""
        files = {name.rpartition("/")[2] for name in self.domain.refiners}
        return tuple(name for name, one in REFINERS.items() if not one.settings.needs_networks or name in files)

    @property
    def directions(self) -> tuple[str, ...]:
        """Names of the domain's directions, without `unusable_directions`."""
        return tuple(name for name in self.domain.directions if name not in self.unusable_directions)

    @cached_property
    def unusable_directions(self) -> dict[str, str]:
        """Of the domain's directions those that cannot be followed alone, and why: their file is not on this machine,
        they were found on another generator, or it holds components, of which one has to be named."""
        found = {}
        for name in self.domain.directions:
            try:
                self.build_edit(name, 1.0, {})
            except (CheckpointError, ConfigError, ShapeError) as error:
                found[name] = str(error)
        return found

    def photo(self, source: Source, *, fit: Fit = "crop", name: str | None = None) -> Photo:
        """A photo in the size of the generator's images; see `read_photo`."""
        return read_photo(source, self.config, fit=fit, name=name)

    def invert(
        self,
        source: Source | Photo,
        method: str = DEFAULT_METHOD,
        *,
        fit: Fit = "crop",
        adapt: bool = False,
        seed: int = 0,
        tell: Tell | None = None,
        **settings: Any,
    ) -> Inversion:
        """Find the codes of a photo.

        Args:
            source: a path or URL, the bytes of a file, a picture of Pillow, uint8 pixels [H, W] or [H, W, C], or what
                `photo` gave.
            method: one of `methods`, such as "lsap_o_w_plus" or "lsap_e"; with a refiner, "lsap_e/hfgi".
            fit: what to do with a photo of another shape: "crop", "refuse", "letterbox" or "stretch".
            adapt: whether a photo that is unlike what the generator makes is made alike first, where something simple
                does that, such as its negative: a digit of ink on paper becomes one of light on dark.
            seed: of the random state, together with the photo's name: the same as in a run of an archive.
            tell: called now and then with the share of the work that is done.
            settings: of the method, over the domain's, such as num_steps.

        Raises:
            BadImageError: the photo cannot be used, or its search came to numbers that are not finite.
            ConfigError: no such method or setting.
            MissingWeightsError: weights of it are not on this machine.
        """
        photo = source if isinstance(source, Photo) else self.photo(source, fit=fit)
        (found,) = self.invert_all([photo], method, adapt=adapt, seed=seed, tell=tell, **settings)
        if isinstance(found, BadImageError):
            raise found
        return found

    def invert_all(
        self,
        photos: Sequence[Photo],
        method: str = DEFAULT_METHOD,
        *,
        adapt: bool = False,
        seed: int = 0,
        tell: Tell | None = None,
        **settings: Any,
    ) -> Iterator[Inversion | BadImageError]:
        """The codes of several photos, as many together as memory has room for; in the place of one that fails, why.

        Args:
            photos: as `photo` gives them.
            method: as for `invert`, like all that follows.
            adapt: whether unlike photos are made alike first.
            seed: of the random states.
            tell: called now and then with the share of the work that is done.
            settings: of the method.
        """
        name, _, refiner = method.partition("/")
        chosen = self.domain.method(name, settings)
        if refiner and refiner not in self.refiners:
            near = did_you_mean(refiner, self.refiners)
            raise ConfigError(f'refiner "{refiner}" is not known here; {near}wanted one of {", ".join(self.refiners)}')
        size = self._batch_size(chosen)
        for start in range(0, len(photos), size):
            some = photos[start : start + size]

            def told(share: float, done: int = start, count: int = len(some)) -> None:
                if tell is not None:
                    tell((done + count * share) / len(photos))

            yield from self._invert(some, chosen, refiner, adapt=adapt, seed=seed, tell=told)

    def build_edit(
        self, direction: str | Mapping[str, Any], strength: float | None, options: Mapping[str, Any]
    ) -> Edit:
        """An edit of this generator's codes; see `Inversion.edit`.

        Raises:
            ConfigError: there is no such direction, or it has no such option.
            CheckpointError: its file does not fit the generator.
        """
        if isinstance(direction, str):
            kind = "components" if "component" in options else "direction"
            known = {**self.domain.directions}
            if kind == "direction" and direction not in known and not _is_place(direction):
                near = did_you_mean(direction, known)
                raise ConfigError(
                    f'domain "{self.domain.name}" has no direction "{direction}"; {near}wanted '
                    f"{', '.join(known) or 'a file: it has none of its own'}"
                )
            if strength is None:
                raise ConfigError(f"the edit along {direction} has no strength; wanted a number, such as 2")
            document: Mapping[str, Any] = {kind: direction, "strength": strength, **options}
        else:
            document = direction
        spec = parse_edit("edit", document, self.domain.directions)
        return build_edit(spec, config=self.config, generator_digest=self.digest)

    def __repr__(self) -> str:
        height, width = self.config.content_size
        return f"Model({self.domain.name!r}: {width}x{height} px, {len(self.methods)} methods, {self._device})"

    # --- the parts ------------------------------------------------------------------------------------

    def _invert(
        self, photos: Sequence[Photo], method: Method, refiner: str, *, adapt: bool, seed: int, tell: Tell
    ) -> Iterator[Inversion | BadImageError]:
        started = time.monotonic()
        looked = [self._looked_at(photo, adapt) for photo in photos]
        target = torch.cat([photo.tensor for photo, _ in looked]).to(self._device)
        seeds = [image_seed(seed, photo.name) for photo, _ in looked]
        share = 0.5 if refiner else 1.0
        found = self._embedded(method, target, seeds, lambda part: tell(share * part))
        name = method.name
        if refiner:
            name = f"{method.name}/{refiner}"
            found = refined(
                self.domain.refiner(refiner),
                method.name,
                found,
                target,
                seeds,
                files=self.domain.refiners,
                segmenter=self.domain.segmenter,
                published=published_of(self.domain, self._settings),
                perceptual=self._networks.perceptual,
                tell=lambda part: tell(share + (1 - share) * part),
            )
        stored = found.stored
        measured = measure(
            found.images, target, stored.codes, generator=self._generator, anchor=self._anchor, networks=self._networks
        )
        seconds = (time.monotonic() - started) / len(photos)
        for index, (photo, warnings) in enumerate(looked):
            if (problem := found.problems[index]) is not None:
                yield BadImageError(problem[0], f"{photo.name}: {problem[1]}")
                continue
            yield Inversion(
                self,
                photo,
                stored.of(index),
                method=name,
                title=found.title,
                measures={measure: values[index] for measure, values in measured.items()},
                warnings=warnings,
                seconds=seconds,
            )

    def _embedded(self, method: Method, target: Tensor, seeds: Sequence[int], tell: Tell) -> FoundPhotos:
        """The first stage of photos [N, C, R, R], as an archive would keep it."""
        embedder = method.settings.embedder(self._parts(method))
        state = embedder.start(seeds, target=target)
        num_steps = embedder.settings.num_steps
        embedder.advance(state, target, after_step=lambda now: tell(now.step / num_steps))
        found = embedder.finish(state)
        if method.settings.keeps_noise:
            found = as_kept(found, self._generator, method.keep_noise)
        maps = [one[:, 0] for one in found.noise] if method.noise != "constant" else None
        stored = Stored.of_arrays(Renderer(self._generator), found.w_plus, maps)
        why = method.settings.why_stopped
        problems = [None if step < 0 else why(step) for step in found.stopped_at.tolist()]
        return FoundPhotos(stored, found.reconstruction, method.title, problems)

    def _looked_at(self, photo: Photo, adapt: bool) -> tuple[Photo, tuple[str, ...]]:
        """A photo, made alike where that is wanted, and what has to be said about it."""
        unlike = self._familiarity.judge(photo.shown(self.config), from_uint8(photo.large[None]))
        if unlike is None:
            return photo, ()
        far = (
            f"{photo.name} looks unlike what the generator of {self.domain.name} makes "
            f"({unlike.times:.1f} times as far as the farthest of its own images)"
        )
        if unlike.as_if is None:
            return photo, (f"{far}: what comes of it says little about the method",)
        if adapt:
            return adapted(photo, unlike.as_if, self.config), ()
        return photo, (f"{far}; changed ({unlike.as_if}) it is alike: change it first, or let it be changed (adapt)",)

    def _parts(self, method: Method) -> Parts:
        parts = Parts(self._generator, self._anchor, self._networks.perceptual)
        if method.encoder is None:
            return parts
        num_passes = encoder_settings(method.settings, method.encoder).num_passes
        return replace(parts, encoder=self._encoder(method.encoder), num_passes=num_passes)

    def _encoder(self, name: str) -> Encoder:
        """The encoder of a name; the last one is kept.

        Raises:
            ConfigError: the domain has none of that name.
            MissingWeightsError: its published file is not on this machine.
            CheckpointError: its file holds something else, or was trained with another generator.
        """
        if name not in self._encoders:
            if name not in self.domain.encoders:
                raise ConfigError(
                    f'domain "{self.domain.name}" has no encoder {name}; wanted a method among '
                    f"{', '.join(self.methods)}, or a file for it"
                )
            check_weights(self.domain, published_of(self.domain, self._settings), [name])
            file = self.domain.encoders[name]
            found = load_encoder(file, generator_config=self.config, name=name, heads=self.domain.heads.get(name))
            check_generator(found, self._loaded, file)
            self._encoders = {name: place(found.encoder.requires_grad_(False), self._device)}
        return self._encoders[name]

    @cached_property
    def _networks(self) -> Networks:
        choice = self._choice
        choice.check(self.config)
        return load_networks(choice, self._device)

    @property
    def _choice(self) -> NetworkChoice:
        domain = self.domain
        metric = domain.metric_perceptual or domain.perceptual
        return NetworkChoice(
            domain.perceptual, metric, domain.identity, domain.judge, published_of(domain, self._settings)
        )

    @cached_property
    def _anchor(self) -> Anchor:
        return remembered_anchor(self._generator, self.digest, AnchorOptions()).to(self._device)

    @cached_property
    def _familiarity(self) -> Familiarity:
        seen_by = network_digest(self.domain.perceptual, published_of(self.domain, self._settings))
        return Familiarity(self._generator, self._networks.perceptual, key=[self.digest, seen_by])

    def _batch_size(self, method: Method) -> int:
        each = bytes_of_image(self.config, goes_back=bool(method.settings.trace_terms))
        return max(1, min(self.domain.batch_size, int(SHARE * free_memory(self._device) / each)))


def _is_place(direction: str) -> bool:
    return any(sign in direction for sign in "/.#")
