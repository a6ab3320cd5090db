"""One edit as a run asks for it: read from YAML or JSON, refused where it is wrong, and built for a generator."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from domains.yaml_values import LARGEST_FLOAT, finite, shown
from lsap_core.editing import (
    Direction,
    Edit,
    StyleDirection,
    along,
    along_component,
    along_styles,
    compose,
    interpolate,
    mix,
)
from lsap_core.errors import CheckpointError, ConfigError, did_you_mean
from lsap_core.generators.config import GeneratorConfig
from tasks.weights.direction_files import split_place
from tasks.weights.directions import load_any_direction, load_components
from tasks.weights.files import read_bytes
from tasks.weights.foreign_directions import KINDS
from tasks.weights.plain_arrays import file_digest

CodesOf = Callable[[Sequence[str]], Tensor]
"""Image ids to the W+ codes of the same method, [N, K, D]."""

Kind = Literal["direction", "components", "style_channel", "sequence", "mix", "interpolation"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_KEYS: dict[str, tuple[Kind, frozenset[str]]] = {
    "direction": ("direction", frozenset({"strength", "equal_effect", "layers", "any_generator"})),
    "components": (
        "components",
        frozenset({"component", "strength", "equal_effect", "layers", "mode", "any_generator"}),
    ),
    "sequence": ("sequence", frozenset()),
    "mix_with": ("mix", frozenset({"layers"})),
    "interpolate_to": ("interpolation", frozenset({"weight"})),
    "style_channel": ("style_channel", frozenset({"strength", "equal_effect"})),
}


@dataclass(frozen=True)
class EditFile:
    """A file that an edit reads.

    Attributes:
        asked: name or path, as the run says it.
        place: path or URL, with #NAME where one of many directions is meant.
        sha256: of the file's content when the edit was read.
    """

    asked: str
    place: str
    sha256: str

    @property
    def entry(self) -> str | None:
        """Which of many directions, or None where the file has but one."""
        return split_place(self.place)[1]


@dataclass(frozen=True)
class EqualEffect:
    """A strength that is not given but found: the one at which the attribute changes by so much.

    Attributes:
        attribute: name of the attribute.
        change: in standard deviations of the attribute over synthetic images.
    """

    attribute: str
    change: float


@dataclass(frozen=True)
class EditSpec:
    """One edit, checked; `build_edit` makes it for a generator.

    Attributes:
        name: what the run calls it.
        kind: which of the others count.
        file: of "direction" and "components".
        component: which one, of "components".
        style_channel: (layer, channel) of S, of "style_channel".
        strength: how far; None with `equal_effect`.
        equal_effect: what to calibrate the strength by.
        layers: (first, end) rows that change; None for all.
        mode: "absolute" or "offset" of "components"; None for what was published for their kind.
        any_generator: whether the file may name another generator.
        parts: of "sequence", one after the other.
        images: id of the other image of "mix" and "interpolation", or that of each image by id.
        weight: share of the other image, of "interpolation".
    """

    name: str
    kind: Kind
    file: EditFile | None = None
    component: int | None = None
    style_channel: tuple[int, int] | None = None
    strength: float | None = None
    equal_effect: EqualEffect | None = None
    layers: tuple[int, int] | None = None
    mode: Literal["absolute", "offset"] | None = None
    any_generator: bool = False
    parts: tuple[EditSpec, ...] = ()
    images: str | Mapping[str, str] | None = None
    weight: float | None = None

    @property
    def needs_images(self) -> bool:
        """Whether the edit is another one for every batch of images, because it reads their codes."""
        return self.images is not None or any(part.needs_images for part in self.parts)

    @property
    def digest(self) -> str:
        """Digest of everything that decides the edit: files by content, not by name or place."""
        told = json.dumps(self._decisive(), sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:32]

    def describe(self) -> dict[str, Any]:
        """The edit in values that JSON has, its files with name and content."""
        told = self._decisive()
        told.pop("parts", None)
        if self.file:
            told["file"] = {"asked": self.file.asked, "sha256": self.file.sha256}
        if self.parts:
            told["sequence"] = [part.describe() for part in self.parts]
        return {"name": self.name, **told, "digest": self.digest}

    def _decisive(self) -> dict[str, Any]:
        told: dict[str, Any] = {"kind": self.kind}
        for name in ("component", "strength", "layers", "mode", "images", "weight"):
            value = getattr(self, name)
            if value is not None:
                told[name] = dict(value) if isinstance(value, Mapping) else value
        if self.layers:
            told["layers"] = list(self.layers)
        if self.style_channel:
            told["style_channel"] = list(self.style_channel)
        if self.file:
            told["file"] = self.file.sha256
            if self.file.entry is not None:
                told["entry"] = self.file.entry
        if self.equal_effect:
            told["equal_effect"] = {"attribute": self.equal_effect.attribute, "change": self.equal_effect.change}
        if self.any_generator:
            told["any_generator"] = True
        if self.parts:
            told["parts"] = [part._decisive() for part in self.parts]
        return told


def parse_edit(name: str, document: Any, directions: Mapping[str, str]) -> EditSpec:
    """An edit from what a YAML or JSON file says of it.

    * {direction: NAME_OR_PATH, strength: 3, layers: [0, 8]}, or equal_effect: {attribute: slant, change: 1.0} in the
      place of the strength
    * a path may be FILE#NAME, one of the many directions of a file; a direction may also be one in S (style vectors)
    * {style_channel: [6, 501], strength: 10}: one channel of S, by layer in execution order and channel
    * {components: NAME_OR_PATH, component: 0, strength: 2, layers: [0, 5], mode: absolute}
    * {sequence: [EDIT, EDIT]}: one after the other
    * {mix_with: IMAGE_ID, layers: [8, 18]}
    * {interpolate_to: IMAGE_ID, weight: 0.5}, or a mapping of image ids to image ids

    Args:
        name: what the run calls it; it becomes a part of a method's name.
        document: the mapping.
        directions: places of the domain's directions and components, by name.

    Raises:
        ConfigError: it describes no edit; the message names the edit and the key.
        CheckpointError: a file of it does not exist.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"edit {shown(name)} has no usable name; wanted letters, digits and _ . + -, such as smile")
    try:
        return _parse(name, document, directions)
    except (ConfigError, CheckpointError) as error:
        raise type(error)(f'edit "{name}": {error}') from error


def build_edit(
    spec: EditSpec,
    *,
    config: GeneratorConfig,
    generator_digest: str,
    strength: float | None = None,
    codes_of: CodesOf | None = None,
    image_ids: Sequence[str] = (),
) -> Edit:
    """The edit for one generator, and for these images where it depends on them.

    Args:
        spec: what is asked for.
        config: sizes of the generator.
        generator_digest: its digest.
        strength: in the place of the spec's; needed by one that was calibrated.
        codes_of: gives the codes of other images; needed by mixing and interpolation.
        image_ids: the images that will be edited, in the order of their codes.

    Raises:
        ConfigError: an edit that is calibrated came without its strength, or an image has no other one.
        CheckpointError: a file does not fit the generator, or has changed since the edit was read.
        ShapeError: a direction that does not fit the generator's sizes.
    """
    if spec.kind == "sequence":
        if strength is not None:
            raise ConfigError(f'edit "{spec.name}" is a sequence, which has no strength of its own')
        return compose(
            *(
                build_edit(
                    part,
                    config=config,
                    generator_digest=generator_digest,
                    codes_of=codes_of,
                    image_ids=image_ids,
                )
                for part in spec.parts
            )
        )
    if spec.kind in ("mix", "interpolation"):
        if strength is not None:
            raise ConfigError(f'edit "{spec.name}" leads to another image and has no strength')
        return _towards_another(spec, codes_of, image_ids)
    far = spec.strength if strength is None else strength
    if far is None:
        raise ConfigError(
            f'edit "{spec.name}" is calibrated to equal effect, and no strength was found yet: set strength, or '
            "run the edit first"
        )
    return _along(spec, far, config=config, generator_digest=generator_digest)


def _along(spec: EditSpec, strength: float, *, config: GeneratorConfig, generator_digest: str) -> Edit:
    if spec.style_channel is not None:
        return along_styles(StyleDirection.of_channel(*spec.style_channel, config), strength)
    assert spec.file is not None
    found = file_digest(read_bytes(split_place(spec.file.place)[0], None, wanted=KINDS))
    if found != spec.file.sha256:
        raise CheckpointError(
            f'{spec.file.place} has changed since edit "{spec.name}" was planned (SHA-256 {found[:16]} for '
            f"{spec.file.sha256[:16]}): put the file back, or plan again"
        )
    wanted: dict[str, Any] = {
        "config": config,
        "generator_digest": generator_digest,
        "any_generator": spec.any_generator,
    }
    if spec.kind == "direction":
        direction = load_any_direction(spec.file.place, **wanted)
        if isinstance(direction, Direction):
            return along(direction, strength, layers=spec.layers)
        if spec.layers is not None:
            raise ConfigError(f"{spec.file.asked} is a direction in S, and layers are rows of W+: leave them out")
        return along_styles(direction, strength)
    assert spec.component is not None
    components = load_components(spec.file.place, **wanted)
    return along_component(components, spec.component, strength, layers=spec.layers, mode=spec.mode)


def _towards_another(spec: EditSpec, codes_of: CodesOf | None, image_ids: Sequence[str]) -> Edit:
    assert spec.images is not None and codes_of is not None
    if isinstance(spec.images, str):
        other, source = codes_of([spec.images]), spec.images
    else:
        if missing := [image_id for image_id in image_ids if image_id not in spec.images]:
            raise ConfigError(f'edit "{spec.name}" names no image to go to from {missing[0]}')
        other, source = codes_of([spec.images[image_id] for image_id in image_ids]), "one for each image"
    if spec.kind == "mix":
        assert spec.layers is not None
        return mix(other, spec.layers, source=source)
    assert spec.weight is not None
    return interpolate(other, spec.weight, source=source)


# --- reading ------------------------------------------------------------------------------------------


def _parse(name: str, document: Any, directions: Mapping[str, str]) -> EditSpec:
    heads = [key for key in _KEYS if isinstance(document, Mapping) and key in document]
    if len(heads) != 1:
        raise ConfigError(f"{shown(document)} is no edit; wanted a mapping with exactly one of {', '.join(_KEYS)}")
    head = heads[0]
    kind, allowed = _KEYS[head]
    if unknown := sorted(str(key) for key in document if key != head and key not in allowed):
        raise ConfigError(
            f"there is no key {unknown[0]}; beside {head} there may be {', '.join(sorted(allowed)) or 'none'}"
        )
    if kind == "sequence":
        return _sequence(name, document[head], directions)
    if kind in ("mix", "interpolation"):
        return _another(name, kind, document, head)
    if ("strength" in document) == ("equal_effect" in document):
        raise ConfigError("it has both strength and equal_effect, or neither; wanted one of them")
    component = None
    if kind == "components":
        component = document.get("component")
        if type(component) is not int or component < 0:
            raise ConfigError(f"component is {shown(component)}; wanted a number from 0")
    return EditSpec(
        name,
        kind,
        file=None if kind == "style_channel" else _file(document[head], directions),
        component=component,
        style_channel=_style_channel(document[head]) if kind == "style_channel" else None,
        strength=_number("strength", document["strength"]) if "strength" in document else None,
        equal_effect=_equal_effect(document["equal_effect"]) if "equal_effect" in document else None,
        layers=_layers(document["layers"]) if document.get("layers") is not None else None,
        mode=_mode(document.get("mode")),
        any_generator=_claim("any_generator", document.get("any_generator", False)),
    )


def _sequence(name: str, parts: Any, directions: Mapping[str, str]) -> EditSpec:
    if not isinstance(parts, list | tuple) or not parts:
        raise ConfigError(f"sequence is {shown(parts)}; wanted a list of edits")
    read = tuple(_parse(name, part, directions) for part in parts)
    if any(part.equal_effect or part.kind == "sequence" for part in read):
        raise ConfigError("a part of the sequence is calibrated or a sequence itself; wanted edits of known strength")
    return EditSpec(name, "sequence", parts=read)


def _another(name: str, kind: Kind, document: Mapping[str, Any], head: str) -> EditSpec:
    images = document[head]
    is_mapping = isinstance(images, Mapping) and bool(images)
    ids = [*images.keys(), *images.values()] if is_mapping else [images]
    if not all(isinstance(one, str) and one for one in ids) or (is_mapping and kind == "mix"):
        wanted = "an image id" if kind == "mix" else "an image id, or a mapping of image ids to image ids"
        raise ConfigError(f"{head} is {shown(images)}; wanted {wanted}")
    needed = "layers" if kind == "mix" else "weight"
    if needed not in document:
        raise ConfigError(f"beside {head} it needs {needed}")
    if kind == "mix":
        return EditSpec(name, kind, images=images, layers=_layers(document["layers"]))
    return EditSpec(
        name, kind, images=dict(images) if is_mapping else images, weight=_number("weight", document["weight"])
    )


def _file(asked: Any, directions: Mapping[str, str]) -> EditFile:
    if not isinstance(asked, str) or not asked:
        raise ConfigError(f"the file is {shown(asked)}; wanted the name of a direction of the domain, or a path")
    place = place_of(asked, directions)
    return EditFile(asked, place, file_digest(read_bytes(split_place(place)[0], None, wanted=KINDS)))


def place_of(asked: str, directions: Mapping[str, str]) -> str:
    """Where a direction lies: the domain's of that name, or NAME#ENTRY of it, else the path itself.

    Raises:
        ConfigError: a bare word that is no name of the domain's.
    """
    if asked in directions:
        return directions[asked]
    name, _, entry = asked.partition("#")
    if entry and name in directions:
        return f"{directions[name]}#{entry}"
    if "/" not in asked and "." not in asked:
        near = did_you_mean(name, directions)
        raise ConfigError(f'direction "{asked}" is not known; {near}wanted {", ".join([*directions, "or a path"])}')
    return asked


def _equal_effect(document: Any) -> EqualEffect:
    if not isinstance(document, Mapping) or set(document) != {"attribute", "change"}:
        raise ConfigError(f"equal_effect is {shown(document)}; wanted {{attribute: NAME, change: NUMBER}}")
    if not isinstance(document["attribute"], str) or not document["attribute"]:
        raise ConfigError(f"attribute is {shown(document['attribute'])}; wanted the name of an attribute")
    change = _number("change", document["change"])
    if change == 0:
        raise ConfigError("change is 0; wanted how far the attribute is to move, in standard deviations")
    return EqualEffect(document["attribute"], change)


def _layers(value: Any) -> tuple[int, int]:
    is_pair = isinstance(value, list | tuple) and len(value) == 2 and all(type(row) is int for row in value)
    if not is_pair or not 0 <= value[0] < value[1]:
        raise ConfigError(f"layers is {shown(value)}; wanted [first, end] with 0 <= first < end, such as [0, 8]")
    return value[0], value[1]


def _style_channel(value: Any) -> tuple[int, int]:
    is_pair = isinstance(value, list | tuple) and len(value) == 2 and all(type(one) is int for one in value)
    if not is_pair or min(value) < 0:
        raise ConfigError(f"style_channel is {shown(value)}; wanted [layer, channel], both from 0, such as [6, 501]")
    return value[0], value[1]


def _mode(value: Any) -> Any:
    if value not in (None, "absolute", "offset"):
        raise ConfigError(f"mode is {shown(value)}; wanted absolute or offset")
    return value


def _claim(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{key} is {shown(value)}; wanted true or false")
    return value


def _number(key: str, value: Any) -> float:
    """A finite number that float32 has."""
    number = finite(value)
    if number is None or abs(number) > LARGEST_FLOAT:
        raise ConfigError(f"{key} is {shown(value)}; wanted a number")
    return number
