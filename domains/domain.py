"""A domain: a generator, the networks that compare its images, and the presets of its methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args, get_origin, get_type_hints

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from domains.embedded import embedded_folders
from domains.yaml_values import LARGEST_FLOAT, LARGEST_INTEGER, MAX_BYTES, finite, read_yaml, shown
from lsap_core.encoders.config import Heads
from lsap_core.errors import ConfigError, did_you_mean
from lsap_core.images import ContentBox
from lsap_core.presets import (
    METHODS,
    REFINER_TRAININGS,
    REFINERS,
    TRAININGS,
    Method,
    NamedRefiner,
    RefinerTraining,
    Training,
    current_names,
    kinds,
    method_of_encoder,
    training,
)

HERE = Path(__file__).parent
SHARED = "all"
"""Under this name stand the settings of every method that has them."""
KEYS = ConfigDict(extra="forbid")
"""Domain files are read into the classes below by pydantic; a key that they do not have is refused."""


def _checked_box(value: Any) -> ContentBox:
    is_box = isinstance(value, list | tuple) and len(value) == 4 and all(type(edge) is int for edge in value)
    if not is_box or not (0 <= value[0] < value[1] and 0 <= value[2] < value[3]):
        raise ConfigError(
            f"content_box is {shown(value)}; wanted [top, bottom, left, right] in pixels, such as [64, 448, 0, 512]"
        )
    top, bottom, left, right = value
    return top, bottom, left, right


@dataclass(frozen=True)
class TrainingPresets:
    """How encoders of a domain are trained, where that differs from the published settings.

    Attributes:
        backbone: "ir_se_50", "resnet_34" or "small".
        augmentation: what is changed at random in a training image: "flip", "none" or what an embedded domain brings.
        perceptual: network of the training's LPIPS; the domain's by default.
        identity: network of the training's identity term, or None where the run has to choose.
        methods: settings by name of the training; those under "all" hold for every one.
    """

    __pydantic_config__: ClassVar = KEYS
    backbone: str = "ir_se_50"
    augmentation: str = "flip"
    perceptual: str | None = None
    identity: str | None = None
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def method(self, name: str, changes: Mapping[str, Any] | None = None) -> Training:
        """The named training with these settings, and further changes on top.

        Raises:
            ConfigError: no such training, or no such setting.
        """
        published = training(name)
        known = {setting.name: getattr(published.settings, setting.name) for setting in fields(published.settings)}
        layers = (self.methods.get(SHARED, {}), self.methods.get(name, {}), changes or {})
        values = {setting: value for layer in layers for setting, value in current_names(layer).items()}
        if unknown := sorted(set(values) - set(known)):
            near = did_you_mean(unknown[0], known)
            raise ConfigError(f"training {name} has no setting {unknown[0]!r}; {near}it has {', '.join(sorted(known))}")
        return published.with_settings(
            {setting: _checked_training(setting, value, known[setting]) for setting, value in values.items()}
        )


@dataclass(frozen=True)
class WeightFile:
    """A published file of weights that a domain wants, and how to know that it is the right one.

    Attributes:
        file: the name that it is passed around with, looked for in the folder of published networks.
        sha256: its SHA-256, or as many of its first hexadecimal digits as are known; empty if nothing is.
        note: what it is.
        megabytes: its size, 10^6 bytes, rounded; 0 if it is not known.
        licence: of the repository that offers it; "not stated" if that says none, empty if nobody offers it.
        offered_by: the repository or page where its authors offer it, by name; empty if it is not released.

    Raises:
        ConfigError: the hash is none.
    """

    __pydantic_config__: ClassVar = KEYS
    file: str
    sha256: str = ""
    note: str = ""
    megabytes: Annotated[float, Field(ge=0)] = 0
    licence: str = ""
    offered_by: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be the beginning of a hash."""
        if len(self.sha256) > 64 or set(self.sha256) - set("0123456789abcdef"):
            raise ConfigError(f"the SHA-256 of {self.file} is {self.sha256!r}; wanted hexadecimal digits, or none")


@dataclass(frozen=True)
class Domain:
    """What a run needs to know about a kind of images; read from a small YAML file.

    Attributes:
        name: what configurations call it.
        description: one line for people.
        generator: path or URL of the generator's weights; None when every run has to name its own.
        perceptual: network of the loss: "lpips-vgg", "lpips-alex", "lpips-squeeze" or an embedded one.
        metric_perceptual: network of the reported LPIPS; the loss's own by default.
        identity: network of the identity similarity, or None.
        judge: a network that is in no loss, for a second opinion, or None.
        methods: settings by method name that differ from the published ones; those under "all" hold for every method
            that has them.
        encoders: paths or URLs of encoders by name. A published name, such as "e4e", gives that method its weights;
            any other is a method of its own.
        content_box: (top, bottom, left, right) of the generator's pixels that carry the picture; None for what the
            file of its weights says.
        label: the class of a conditional generator, from 0, whose codes are sampled; None for the mean over its
            classes, or for a generator without.
        heads: how the heads of encoders make rows of W+, by name: "direct" (pSp), "offsets" (e4e, LSAP_E) or "single";
            for files that do not say it, under names that do not either.
        shard_rows: images of a shard.
        batch_size: images optimized together on one device.
        encoder_training: how its encoders are trained.
        directions: paths or URLs of directions and components to edit along, by name.
        attributes: what can be measured of its images, by name.
        refiners: paths or URLs of the networks of refiners, by name; under "e4e/hfgi" those that belong to one
            embedding, which come before "hfgi".
        refinement: settings by refiner that differ from the published ones.
        refiner_training: settings by refiner of the training of its networks, where they differ from the published
            ones; what changes and compares images is that of `encoder_training`.
        segmenter: what finds the segments of its images, for refiners that ask: "superpixels", "face",
            "face_with_hair", or "maps:" and the folder of label maps.
        weights: published files that it needs, by role, such as "generator", "psp", "refiner e4e/hfgi" or "inception".
    """

    __pydantic_config__: ClassVar = KEYS
    name: str
    description: str
    perceptual: str
    generator: str | None = None
    metric_perceptual: str | None = None
    identity: str | None = None
    judge: str | None = None
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    encoders: Mapping[str, str] = field(default_factory=dict)
    content_box: Annotated[ContentBox, BeforeValidator(_checked_box)] | None = None
    label: Annotated[int, Field(ge=0)] | None = None
    heads: Mapping[str, Heads] = field(default_factory=dict)
    shard_rows: Annotated[int, Field(ge=1)] = 512
    batch_size: Annotated[int, Field(ge=1)] = 16
    encoder_training: TrainingPresets = TrainingPresets()
    directions: Mapping[str, str] = field(default_factory=dict)
    attributes: tuple[str, ...] = ()
    refiners: Mapping[str, str] = field(default_factory=dict)
    refinement: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    refiner_training: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    segmenter: str = "superpixels"
    weights: Mapping[str, WeightFile] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse names of encoders that mean something else."""
        if SHARED in self.encoders:
            place = self.encoders[SHARED]
            raise ConfigError(f'encoders has {SHARED!r}: {place!r}; wanted names (not "{SHARED}") and paths')
        for name in self.encoders:
            method_of_encoder(name)

    def with_encoders(self, encoders: Mapping[str, str], heads: Mapping[str, Heads] | None = None) -> Domain:
        """The domain with further encoders, or others in the place of its own, and how their heads make rows of W+.

        Raises:
            ConfigError: a name that another kind of method has.
        """
        return replace(self, encoders={**self.encoders, **encoders}, heads={**self.heads, **(heads or {})})

    def method(
        self, name: str, changes: Mapping[str, Any] | None = None, *, shared: Mapping[str, Any] | None = None
    ) -> Method:
        """The named method, or that of an encoder of this name, with this domain's settings.

        Args:
            name: of a published method or of an encoder.
            changes: further settings on top.
            shared: settings for every method that has them, between the domain's and the changes.

        Raises:
            ConfigError: no such method, or no such setting.
        """
        if name not in METHODS and name not in self.encoders:
            there = {**METHODS, **self.encoders}
            raise ConfigError(
                f'method "{name}" is not known; {did_you_mean(name, there)}wanted one of {", ".join(there)}'
            )
        chosen = METHODS[name] if name in METHODS else method_of_encoder(name)
        of_noise = {"keep_noise": ""} if chosen.settings.keeps_noise else {}
        known = {"encoder": "", **of_noise, **asdict(chosen.settings)}
        others = {"keep_noise", *(setting.name for kind in kinds().values() for setting in fields(kind))} - set(known)
        values: dict[str, Any] = {}
        for for_all, own in ((self.methods.get(SHARED, {}), self.methods.get(name, {})), (shared or {}, changes or {})):
            values |= {setting: value for setting, value in current_names(for_all).items() if setting not in others}
            values |= current_names(own)
        if unknown := sorted(set(values) - set(known)):
            near = did_you_mean(unknown[0], known)
            raise ConfigError(f"method {name} has no setting {unknown[0]!r}; {near}it has {', '.join(sorted(known))}")
        return chosen.with_settings(
            {setting: _checked(setting, value, known[setting]) for setting, value in values.items()}
        )

    def refiner(self, name: str, changes: Mapping[str, Any] | None = None) -> NamedRefiner:
        """The named refiner with this domain's settings.

        Args:
            name: of a published refiner.
            changes: further settings on top.

        Raises:
            ConfigError: no such refiner, or no such setting.
        """
        if name not in REFINERS:
            near = did_you_mean(name, REFINERS)
            raise ConfigError(f'refiner "{name}" is not known; {near}wanted one of {", ".join(REFINERS)}')
        chosen = REFINERS[name]
        known = {"networks": "", **asdict(chosen.settings)}
        values = {**self.refinement.get(name, {}), **(changes or {})}
        types = {"networks": str, **get_type_hints(type(chosen.settings))}
        return chosen.with_settings(_checked_all(f"refiner {name}", values, known, types))

    def training_of_refiner(self, name: str, changes: Mapping[str, Any] | None = None) -> RefinerTraining[Any]:
        """The training of the named refiner's networks with this domain's settings.

        Args:
            name: of a refiner with networks that can be trained.
            changes: further settings on top.

        Raises:
            ConfigError: no such training, or no such setting.
        """
        if name not in REFINER_TRAININGS:
            raise ConfigError(
                f'networks of refiner "{name}" cannot be trained; {did_you_mean(name, REFINER_TRAININGS)}'
                f"wanted those of {', '.join(REFINER_TRAININGS)}"
            )
        chosen = REFINER_TRAININGS[name]
        values = {**self.refiner_training.get(name, {}), **(changes or {})}
        types = get_type_hints(type(chosen.settings))
        return chosen.with_settings(_checked_all(f"training of {name}", values, asdict(chosen.settings), types))


def load_domain(name_or_path: str) -> Domain:
    """A built-in domain by name, or one's own from a YAML file; relative paths in it start at the file.

    Raises:
        ConfigError: no such domain, or a file that does not describe one.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        if name_or_path not in builtin_domains():
            raise ConfigError(
                f'domain "{name_or_path}" is not known; {did_you_mean(name_or_path, builtin_domains())}'
                f"wanted one of {', '.join(builtin_domains())}, "
                "or the path of a .yaml file"
            )
        path = builtin_domains()[name_or_path]
    if not path.is_file():
        found = "is no file" if path.exists() else "does not exist"
        raise ConfigError(f"domain file {path} {found}; wanted a YAML file that describes a domain")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"domain file {path} has {path.stat().st_size:,} bytes; wanted at most {MAX_BYTES:,}")
    return parse_domain(path.read_bytes(), str(path))


def parse_domain(data: bytes, place: str) -> Domain:
    """The domain that a YAML file describes.

    Args:
        data: the file.
        place: its path or URL; relative paths in it start there.

    Raises:
        ConfigError: it does not describe a domain.
    """
    try:
        domain = TypeAdapter(Domain).validate_python(read_yaml(data, place))
        names = {**METHODS, **domain.encoders}
        if unknown := sorted(set(domain.methods) - set(names) - {SHARED}):
            raise ConfigError(f'{place} has settings for "{unknown[0]}"; methods are {", ".join(names)} or "{SHARED}"')
        for name in names:
            domain.method(name)
        trained = domain.encoder_training
        if unknown := sorted(set(trained.methods) - set(TRAININGS) - {SHARED}):
            raise ConfigError(
                f'{place} trains "{unknown[0]}"; what can be trained is {", ".join(TRAININGS)} or "{SHARED}"'
            )
        for name in TRAININGS:
            trained.method(name)
        if unknown := sorted(set(domain.refinement) - set(REFINERS)):
            raise ConfigError(f'{place} has settings for "{unknown[0]}"; refiners are {", ".join(REFINERS)}')
        for name in domain.refinement:
            domain.refiner(name)
        for name in domain.refiner_training:
            domain.training_of_refiner(name)
    except ValidationError as error:
        raise _refusal(place, error.errors()) from error
    return replace(
        domain,
        generator=domain.generator and _beside(place, domain.generator),
        encoders={name: _beside(place, other) for name, other in domain.encoders.items()},
        directions={name: _beside(place, other) for name, other in domain.directions.items()},
        refiners={name: _beside(place, other) for name, other in domain.refiners.items()},
        segmenter=_segmenter_beside(place, domain.segmenter),
    )


def _refusal(place: str, problems: list[Any]) -> ConfigError:
    """Our own words where they are, else those of pydantic: for each key, what it is and what was wanted."""
    for problem in problems:
        if isinstance(own := problem.get("ctx", {}).get("error"), ConfigError):
            return own
    told = []
    for problem in problems:
        found = "" if problem["type"] == "missing" else shown(problem["input"])
        told.append(": ".join(filter(None, (".".join(map(str, problem["loc"])), found, problem["msg"]))))
    return ConfigError(f"{place} does not describe a domain: {'; '.join(told)}")


def _beside(file: str, place: str) -> str:
    """A path that starts at the file's folder; URLs and absolute paths as they are."""
    if "://" in place or Path(place).is_absolute():
        return place
    return f"{file.rpartition('/')[0]}/{place}" if "://" in file else str(Path(file).parent / place)


def _segmenter_beside(file: str, segmenter: str) -> str:
    """The name of a segmenter, whose folder of label maps starts at the file's folder."""
    kind, _, folder = segmenter.partition(":")
    return f"{kind}:{_beside(file, folder)}" if kind == "maps" and folder else segmenter


def _checked_training(setting: str, value: Any, default: Any) -> Any:
    """As `_checked`, with what only trainings have: claims, and a step that may be none."""
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ConfigError(f"{setting} is {shown(value)}; wanted true or false")
        return value
    if setting == "progressive_start":
        return None if value is None else _checked(setting, value, 0)
    return _checked(setting, value, default)


def _checked_all(
    what: str, values: Mapping[str, Any], known: Mapping[str, Any], types: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings of a refiner in their types, if it has them."""
    if unknown := sorted(set(values) - set(known)):
        near = did_you_mean(unknown[0], known)
        raise ConfigError(f"{what} has no setting {unknown[0]!r}; {near}it has {', '.join(sorted(known))}")
    return {name: _checked_refinement(name, value, known[name], types[name]) for name, value in values.items()}


def _checked_refinement(setting: str, value: Any, default: Any, kind: Any) -> Any:
    """As `_checked`, with what only refiners have: claims, names, and numbers that may be none."""
    if value is None and type(None) in get_args(kind):
        return None
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ConfigError(f"{setting} is {shown(value)}; wanted true or false")
        return value
    if get_origin(kind) is Mapping:
        return _checked_powers(setting, value)
    if any(get_origin(one) is tuple for one in (kind, *get_args(kind))):
        if not isinstance(value, list | tuple) or not all(type(one) in (str, int) for one in value):
            raise ConfigError(f"{setting} is {shown(value)}; wanted a list of names or of whole numbers")
        return tuple(value)
    return _checked(setting, value, default)


def _checked_powers(setting: str, value: Any) -> dict[str, tuple[float, ...]]:
    """Numbers by name of an edit."""
    is_table = isinstance(value, Mapping) and all(isinstance(powers, list | tuple) for powers in value.values())
    table = {str(name): [finite(power) for power in powers] for name, powers in value.items()} if is_table else {}
    if not is_table or any(not powers or None in powers for powers in table.values()):
        raise ConfigError(f"{setting} is {shown(value)}; wanted lists of numbers by name, such as {{smile: [-2, 2]}}")
    return {name: tuple(power for power in powers if power is not None) for name, powers in table.items()}


def _checked(setting: str, value: Any, default: Any) -> Any:
    """The value in the type of the setting's default: YAML 1.1 takes 1e-2 for text, and 5 for another than 5.0."""
    if value is None and default is None:
        return None
    if isinstance(default, str):
        if not isinstance(value, str | None):
            raise ConfigError(f"{setting} is {shown(value)}; wanted text")
        return value
    is_whole = isinstance(default, int)
    number = finite(value)
    if number is None or (is_whole and not number.is_integer()):
        raise ConfigError(f"{setting} is {shown(value)}; wanted a {'whole ' if is_whole else ''}number")
    largest = LARGEST_INTEGER if is_whole else LARGEST_FLOAT
    if abs(number) > largest:
        raise ConfigError(f"{setting} is {shown(value)}; wanted a number of at most {largest:.4g}")
    return int(value if isinstance(value, int) else number) if is_whole else number


def builtin_domains() -> dict[str, Path]:
    """The domains that come with the package: with a folder of their own, or with published weights."""
    embedded = {name: folder / "domain.yaml" for name, folder in embedded_folders().items()}
    return embedded | {name: HERE / f"{name}.yaml" for name in ("full_scale", "face", "car", "church", "wild")}
