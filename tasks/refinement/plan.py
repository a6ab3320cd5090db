"""Which refinements of which inversions an archive lacks: the runs that are left."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, Final

from lsap_archive import PlannedRow, RunInfo, RunPlan, RunWriter, Subject
from lsap_core.errors import ConfigError
from tasks.archived.jobs import opened, plan_of_missing, provenance_of, publish_made, shards_of
from tasks.archived.opening import open_writer
from tasks.archived.places import known_places, with_places
from tasks.archived.runs import id_part, title_of
from tasks.digests import digest_of
from tasks.machine_memory import in_words
from tasks.refinement.chosen import RefinedMethod, check_state_fits, choose_refinements, digests_of_networks
from tasks.refinement.request import RefinementRequest
from tasks.refinement.worker import RefineWorker
from tasks.stage import Job


class RefinementStage:
    """The refinements of an archive's inversions.

    Attributes:
        refinements: every refiner of every method.
        writer: the archive.
        digests: of each refinement, such as "lsap_e/pti": which version of that name is meant.
        config: of the generator.
        notes: what whoever asked should know of the networks of refiners, a sentence each.
    """

    part: Final = "refinements"
    verb: Final = "refine"

    def __init__(self, request: RefinementRequest, *, start: bool = True) -> None:
        """Check refiners, inversions and generator against the archive; nothing is written yet.

        Args:
            request: what is asked for.
            start: write the new runs' plans into the archive; False only tells what would be done.

        Raises:
            StoreRefusedError: this process may not write there.
            ConfigError: the store has no room for what is kept.
            Else as `choose_refinements`.
        """
        self.build_worker = functools.partial(RefineWorker, request)
        self.batch_size = request.batch_size
        self._request = request
        self._start = start
        loaded, self.refinements = choose_refinements(request)
        self.config = loaded.config
        self.digests: dict[str, str] = {}
        self.notes = tuple(dict.fromkeys(note for one in self.refinements for note in one.notes))
        self.writer = open_writer(request.archive, loaded)
        if start:
            self.writer.store.check_writable()
            self._check_space()

    def jobs(self) -> Iterator[Job]:
        """The refinement runs that are left, of each those of older inversions first; to be gone through once."""
        with known_places(self._request.source) as places:
            for one, plan in self._missing(tidy=self._start):
                is_new = not self.writer.is_planned(plan.run_id)
                if is_new and not self._start:
                    left = list(range(plan.num_shards) if plan.shards is None else plan.shards)
                else:
                    left = opened(self.writer, plan).missing_shards()
                shards = shards_of(plan.run_id, one.name, plan.num_rows, plan.shard_rows, left)
                if moved := places.moved(plan.table()):
                    ids = [row.image_id for row in plan.rows]
                    shards = tuple(with_places(shard, ids, moved, plan.shard_rows) for shard in shards)
                yield Job(plan.run_id, one.name, shards, is_new)

    def publish(self, job_id: str) -> None:
        """Check every object of a finished refinement and make it visible to readers."""
        publish_made(self._request.archive, job_id)

    def bytes_left(self) -> int:
        """What is still to be kept, before compression."""
        return sum(one.bytes_per_image * _images_of(plan) for one, plan in self._missing(tidy=False))

    def _missing(self, *, tidy: bool) -> Iterator[tuple[RefinedMethod, RunPlan]]:
        for one in self.refinements:
            for subject in one.runs:
                whole = _run_plan(self._request, subject, one, self.writer.generator["digest"])
                self.digests[one.name] = whole.method_digest
                check_state_fits(self._request, one, whole.shard_rows)
                plan = plan_of_missing(self.writer, whole, tidy=tidy)
                if plan is not None:
                    yield one, plan

    def _check_space(self) -> None:
        """Refuse what the store has no room for, before work is spent; object stores do not tell."""
        free = self.writer.store.free_bytes()
        if free is not None and (wanted := self.bytes_left()) > free:
            raise ConfigError(
                f"{self._request.archive} has {in_words(free)} free, and what is kept of these refinements takes up to "
                f"{in_words(wanted)}: make room, name fewer methods, or refine with keep: images or keep: nothing"
            )


def _images_of(plan: RunPlan) -> int:
    shards = range(plan.num_shards) if plan.shards is None else plan.shards
    return sum(min(plan.shard_rows, plan.num_rows - shard * plan.shard_rows) for shard in shards)


def _run_plan(request: RefinementRequest, subject: RunInfo, one: RefinedMethod, generator: str) -> RunPlan:
    """The plan of one refiner of one run; the same refiner, settings and run give the same run id."""
    inverted = RunWriter.open(request.archive, subject.run_id)
    networks = digests_of_networks(request)
    config: dict[str, Any] = {
        "method": one.name,
        "title": f"{title_of(subject)}, {one.refiner.title}",
        "refiner": one.about,
        "subject": {"run_id": subject.run_id, "method": subject.method, "method_digest": subject.method_digest},
        "generator": generator,
        "anchor": subject.config.get("anchor"),
        "networks": networks,
        "seed": request.seed,
        "state_type": request.state_type,
    }
    config |= {name: subject.config[name] for name in ("noise", "fit") if name in subject.config}
    decisive = [
        one.name,
        {name: value for name, value in one.about.items() if name not in ("name", "networks")},
        subject.method_digest,
        generator,
        networks,
        request.seed,
        request.state_type,
    ]
    digest = digest_of(decisive)
    return RunPlan(
        run_id=f"{id_part(one.name)}-{digest_of([digest, subject.run_id])[:16]}",
        method=one.name,
        method_digest=digest,
        config=config,
        provenance=provenance_of(generator),
        rows=tuple(PlannedRow(**row) for row in inverted.images.to_pylist()),
        arrays=one.arrays,
        shard_rows=inverted.shard_rows,
        subject=Subject(subject.run_id, subject.method, subject.method_digest, None, None, refiner=one.refiner.name),
    )
