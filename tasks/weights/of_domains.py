"""The published files of weights that a domain wants: which are there, which are missing, which are another file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from domains.domain import Domain, WeightFile, load_domain, parse_domain
from lsap_archive import ArchiveMismatchError, ArchiveNotFoundError, read_file
from lsap_core.errors import ConfigError, MissingWeightsError
from lsap_core.presets import METHODS
from tasks.settings import Settings
from tasks.visible_text import markdown_table, visible
from tasks.weights.published import Published, sha256_of

GENERATOR, DIRECTION, REFINER, FACE_PARSER = "generator", "direction ", "refiner ", "face parser"
"""Roles: "generator"; the name of an encoder; "direction <name>"; "refiner <name>" or "refiner <embedding>/<name>"; any
other is the name of a network."""

State = Literal["found", "found, hash not known", "missing", "another file", "another file, taken"]


@dataclass(frozen=True)
class FoundWeights:
    """What became of one wanted file.

    Attributes:
        role: what it is for.
        wanted: its name and hash.
        path: where it was looked for.
        state: "found" by its hash, found without one being known, missing, or a file with another hash, which
            `LSAP_OTHER_WEIGHTS` takes.
        sha256: of the file that is there, or "".
    """

    role: str
    wanted: WeightFile
    path: str
    state: State
    sha256: str

    @property
    def is_usable(self) -> bool:
        """Whether the file is there and would be taken."""
        return self.state not in ("missing", "another file")


def look_for_weights(
    domain: Domain, published: Published, *, roles: Iterable[str] | None = None
) -> tuple[FoundWeights, ...]:
    """Look for every file that a domain wants, and hash what is there.

    Args:
        domain: with its `weights`.
        published: where published networks lie.
        roles: only these; None for all.
    """
    wanted = domain.weights if roles is None else {role: domain.weights[role] for role in roles}
    return tuple(_look_for(role, file, published) for role, file in wanted.items())


def check_weights(domain: Domain, published: Published, roles: Iterable[str]) -> None:
    """Make sure that the files of some roles are there; nothing is ever downloaded.

    Raises:
        MissingWeightsError: files are missing or are others; one sentence names them all.
    """
    found = look_for_weights(domain, published, roles=[role for role in roles if role in domain.weights])
    problems = [
        f"{one.wanted.file} ({one.role})" + ("" if one.state == "missing" else f", which has SHA-256 {one.sha256[:16]}")
        for one in found
        if not one.is_usable
    ]
    if problems:
        raise MissingWeightsError(
            f'domain "{domain.name}" needs {"; ".join(problems)}: not in {published} as wanted; copy the files there, '
            f"or name their folder in the variable LSAP_BACKBONES (lsap domain weights {domain.name} lists all)"
        )


def with_published_weights(domain: Domain, published: Published) -> Domain:
    """The domain with the places of what it has published: generator, encoders, directions, networks of refiners.

    What it has itself stays.

    Raises:
        CheckpointError: one of these files is known to be another one.
    """
    places = {role: published.place(file.file) for role, file in domain.weights.items()}
    for role, file in domain.weights.items():
        if file.sha256 and (role == GENERATOR or _is_encoder(role) or role.startswith((DIRECTION, REFINER))):
            published.find(file.file)  # raises where it is another one
    encoders = {role: place for role, place in places.items() if _is_encoder(role)}
    return replace(
        domain,
        generator=domain.generator or places.get(GENERATOR),
        encoders={**encoders, **domain.encoders},
        directions={**_named(DIRECTION, places), **domain.directions},
        refiners={**_named(REFINER, places), **domain.refiners},
    )


def published_of(domain: Domain, settings: Settings) -> Published:
    """Where the published files of a domain lie, and the hashes that it knows them by."""
    hashes = tuple((file.file, file.sha256) for file in domain.weights.values() if file.sha256)
    return Published(settings.backbones, hashes, settings.other_weights)


def open_domain(name_or_path: str, settings: Settings) -> Domain:
    """A domain whose weights may be published files, in the folder where those lie.

    Raises:
        ConfigError: no such domain, or a file that does not describe one.
        CheckpointError: a published file is known to be another one.
        StoreUnavailableError: the storage of its file does not answer.
    """
    domain = find_domain(name_or_path)
    return with_published_weights(domain, published_of(domain, settings))


def find_domain(name_or_path: str) -> Domain:
    """A domain by name, or from a YAML file by path or URL.

    Raises:
        ConfigError: no such domain, or a file that does not describe one.
        StoreUnavailableError: the storage of its file does not answer.
    """
    if "://" not in name_or_path:
        return load_domain(name_or_path)
    try:
        return parse_domain(read_file(name_or_path), name_or_path)
    except (ArchiveMismatchError, ArchiveNotFoundError) as error:
        raise ConfigError(f"domain file {error}") from None


def weights_lines(found: Iterable[FoundWeights]) -> list[str]:
    """For people: a row of a Markdown table for each file."""
    texts = [(one.role, one.wanted.file, one.state, _hash_in_words(one), _about(one.wanted)) for one in found]
    heads = ("role", "file", "state", "SHA-256", "what it is")
    rows = [heads, ("---",) * len(heads), *(tuple(visible(text).replace("|", "\\|") for text in row) for row in texts)]
    return [f"| {' | '.join(row)} |" for row in rows]


def weights_document(found: Iterable[FoundWeights]) -> dict[str, Mapping[str, str | float | None]]:
    """For machines: by role."""
    return {
        one.role: {
            "file": one.wanted.file,
            "path": one.path,
            "state": one.state,
            "sha256": one.sha256,
            "wanted_sha256": one.wanted.sha256,
            "note": one.wanted.note,
            "megabytes": one.wanted.megabytes or None,
            "licence": one.wanted.licence,
            "offered_by": one.wanted.offered_by,
        }
        for one in found
    }


def offered_table(domains: Iterable[Domain]) -> str:
    """What domains want and who offers it, as a table of Markdown, a row for each file; docs/weights.md has it."""
    wanted: dict[WeightFile, list[str]] = {}
    for domain in domains:
        for file in domain.weights.values():
            wanted.setdefault(file, []).append(domain.name)
    heads = ["file", "what it is", "domains", "licence", "MB", "SHA-256", "offered by"]
    rows = [
        [
            file.file,
            file.note,
            ", ".join(dict.fromkeys(names)),
            file.licence or "-",
            f"{file.megabytes:g}" if file.megabytes else "not known",
            f"{file.sha256[:8]}..." if file.sha256 else "not known",
            file.offered_by or "nobody",
        ]
        for file, names in wanted.items()
    ]
    return markdown_table([heads, *rows], align="llllrll")


def _about(wanted: WeightFile) -> str:
    """What a file is, whose, and under which licence."""
    licence = f"licence: {wanted.licence}" if wanted.licence else ""
    return "; ".join(part for part in (wanted.note, wanted.offered_by, licence) if part)


def _look_for(role: str, wanted: WeightFile, published: Published) -> FoundWeights:
    path, place = published.look(wanted.file), published.place(wanted.file)
    if path is None:
        return FoundWeights(role, wanted, place, "missing", "")
    sha256, wanted = sha256_of(path), replace(wanted, sha256=published.hash_of(wanted.file) or wanted.sha256)
    if not wanted.sha256:
        return FoundWeights(role, wanted, place, "found, hash not known", sha256)
    if sha256.startswith(wanted.sha256):
        return FoundWeights(role, wanted, place, "found", sha256)
    return FoundWeights(
        role, wanted, place, "another file, taken" if published.takes_others else "another file", sha256
    )


def _named(kind: str, places: Mapping[str, str]) -> dict[str, str]:
    """Places by what follows a kind of role, such as "direction "."""
    return {role.removeprefix(kind): place for role, place in places.items() if role.startswith(kind)}


def _is_encoder(role: str) -> bool:
    return role in METHODS and METHODS[role].encoder == role


def _hash_in_words(one: FoundWeights) -> str:
    if one.state.startswith("another file"):
        return f"{one.sha256[:8]}, wanted {one.wanted.sha256[:8]}"
    return one.sha256[:8] or (one.wanted.sha256[:8] if one.wanted.sha256 else "not known")
