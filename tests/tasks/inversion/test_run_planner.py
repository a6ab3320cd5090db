"""What a listing and an archive leave to do: which images are read, which runs are gone on with, which are made."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lsap_archive import (
    ArchiveWriter,
    Geometry,
    RunPlan,
    RunWriter,
    count_open,
    open_archive,
    planned_images,
    scratch_key,
)
from lsap_core.presets import method, recorded_settings
from tasks.errors import BadImageError
from tasks.inversion.known_images import KnownImages
from tasks.inversion.listing import LISTED_TOGETHER, list_images
from tasks.inversion.methods import MethodPlan, missing_shards, plan_method, planned_rows
from tasks.inversion.run_planner import RunPlanner, UnfinishedRun
from tasks.sources.items import LeftOut, SourceItem
from tasks.sources.source import Source, digest_bytes
from tasks.stage import Shard
from tasks.weights.networks import NetworkChoice

METHOD = method("stylegan2_w_plus", num_steps=3)
GEOMETRY = Geometry(2, 3, (4,))


def planned(seed: int = 0) -> MethodPlan:
    networks = NetworkChoice("digits-features", "digits-features")
    names = {"generator_digest": "g", "anchor": "a", "fit": "refuse"}
    return plan_method(METHOD, networks=networks, seed=seed, geometry=GEOMETRY, **names)


@dataclass
class Images:
    """A source: content and version by name; what is read is noted."""

    contents: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    root: str = "test://"
    reads: list[str] = field(default_factory=list)
    kind: str = "test"

    def put(self, **contents: str) -> None:
        """Write images; each gets a version that it never had."""
        self.contents |= contents
        self.versions |= {name: uuid.uuid4().hex for name in contents}

    def items(self, left_out: LeftOut) -> Iterator[SourceItem]:
        for name in sorted(self.contents):
            yield SourceItem(name, self.root + name, version=self.versions.get(name))

    def read(self, uri: str) -> bytes:
        name = uri.removeprefix(self.root)
        self.reads.append(name)
        if self.contents[name] == "no access":
            raise BadImageError("unreadable", "no access")
        return self.contents[name].encode()

    def close(self) -> None:
        pass


@dataclass
class Desk:
    """A source, an archive, and commands that plan and finish."""

    images: Images = field(default_factory=Images)
    methods: list[MethodPlan] = field(default_factory=lambda: [planned()])
    shard_rows: int = 2
    archive: ArchiveWriter = field(
        default_factory=lambda: ArchiveWriter.open(
            f"memory://test-{uuid.uuid4().hex}",
            generator_digest="g",
            generator_name="tiny",
            geometry=GEOMETRY,
        )
    )

    def found(self, run_images: int = 100) -> Iterator[UnfinishedRun | RunPlan]:
        source = Source("test", self.images)
        with KnownImages(planned_images(self.archive.runs()), self.archive.versions()) as known:
            planner = RunPlanner(
                known,
                self.methods,
                shard_rows=self.shard_rows,
                is_taken=self.archive.is_taken,
                keep_read=lambda images: self.archive.keep_versions(planned_rows(images)),
                run_images=run_images,
            )
            yield from planner.runs(list_images(source, source.items(), known))

    def plan(self, run_images: int = 100) -> list[RunWriter]:
        """Plan in earnest; the runs to work on."""
        self.images.reads.clear()
        found = list(self.found(run_images))
        return [self.archive.start_run(one) if isinstance(one, RunPlan) else one.run for one in found]

    def work(self, *runs: RunWriter, changed: Sequence[str] = (), told: bool = True) -> None:
        """Finish runs; of these images the content was another one at their turn."""
        for run in runs:
            for shard in run.missing_shards():
                write(run, shard, changed)
            assert run.publish(count_open(run) if told else {})


def write(run: RunWriter, shard: int, changed: Sequence[str] = ()) -> None:
    ids = run.planned_rows(shard).column("image_id").to_pylist()
    is_changed = [name in changed for name in ids]
    rows = {
        "status": ["failed" if one else "ok" for one in is_changed],
        "reason": ["changed" if one else None for one in is_changed],
        "message": ["it was another one" if one else None for one in is_changed],
    }
    table = pa.table(rows, schema=pa.schema([(name, pa.string()) for name in rows]))
    arrays = {"w_plus": np.zeros((len(ids), 2, 3), np.float32), "noise_00": np.zeros((len(ids), 4, 4), np.float32)}
    assert run.write_shard(shard, arrays, table, "1")


def ids_of(run: RunWriter) -> list[str]:
    return run.images.column("image_id").to_pylist()


@pytest.fixture
def desk() -> Desk:
    return Desk()


# --- what is left to do -------------------------------------------------------------------------------


def test_everything_is_planned_in_an_empty_archive(desk: Desk) -> None:
    desk.images.put(a="1", b="2", c="3")
    (run,) = desk.plan()
    assert (ids_of(run), run.num_shards) == (["a", "b", "c"], 2)
    assert run.images.column("digest").to_pylist() == [digest_bytes(text) for text in (b"1", b"2", b"3")]
    assert run.images.column("version").to_pylist() == [desk.images.versions[name] for name in "abc"]
    assert run.plan["config"]["settings"] == recorded_settings(METHOD.settings)


def test_what_is_published_with_the_same_content_is_skipped(desk: Desk) -> None:
    desk.images.put(a="1", b="2")
    desk.work(*desk.plan())
    assert desk.plan() == []
    desk.images.put(b="other", c="3")
    (run,) = desk.plan()
    assert ids_of(run) == ["b", "c"]


def test_another_method_is_not_taken_for_this_one(desk: Desk) -> None:
    desk.images.put(a="1")
    desk.work(*desk.plan())
    desk.methods.append(planned(seed=1))
    assert [run.plan["method_digest"] for run in desk.plan()] == [planned(seed=1).digest]


def test_unfinished_runs_come_first_and_their_images_are_not_planned_twice(desk: Desk) -> None:
    desk.methods, desk.shard_rows = [planned(), planned(seed=1)], 1
    desk.images.put(b="2", c="3")
    first, other = desk.plan()
    write(first, 0)
    desk.work(other)
    desk.images.put(a="1", d="4")
    runs = desk.plan()
    assert runs[0].run_id == first.run_id
    assert [ids_of(run) for run in runs] == [["b", "c"], ["a", "d"], ["a", "d"]]
    assert [[shard.index for shard in missing_shards(run, {})] for run in runs] == [[1], [0, 1], [0, 1]]


def test_content_that_changed_since_an_unfinished_run_is_planned_anew(desk: Desk) -> None:
    desk.images.put(a="old")
    (first,) = desk.plan()
    desk.images.put(a="new")
    again, new = desk.plan()
    assert again.run_id == first.run_id
    assert new.images.column("digest").to_pylist() == [digest_bytes(b"new")]


def test_content_that_comes_back_is_run_again(desk: Desk) -> None:
    """Else the newest result would stay that of the content in between."""
    seen = []
    for content in ("first", "second", "first", "second", "first"):
        desk.images.put(a=content)
        desk.images.versions["a"] = content  # an ETag comes back with its content
        (run,) = desk.plan()
        desk.work(run)
        seen.append(run.run_id)
        newest = open_archive(desk.archive.store.url).rows(["digest"]).column("digest")[-1]
        assert newest.as_py() == digest_bytes(content.encode())
        assert desk.plan() == []
    assert len(set(seen)) == len(seen)


def test_runs_have_a_largest_size_and_come_while_the_listing_goes_on(desk: Desk) -> None:
    desk.images.put(**{f"{number:06d}": str(number) for number in range(LISTED_TOGETHER + 5)})
    plans = list(desk.found(run_images=4_000))
    first = plans[0]
    assert isinstance(first, RunPlan) and [row.image_id for row in first.rows] == [f"{n:06d}" for n in range(4_000)]
    assert [plan.num_rows for plan in plans if isinstance(plan, RunPlan)] == [4_000, 4_000, LISTED_TOGETHER - 7_995]
    desk.images.reads.clear()
    begun = desk.found(run_images=4_000)
    assert next(begun) == first
    assert len(desk.images.reads) == LISTED_TOGETHER  # not yet the last five
    begun.close()


def test_a_planner_that_was_killed_plans_the_same_runs_again(desk: Desk) -> None:
    desk.images.put(**{name: name for name in "abcdefg"})
    wanted = [run.run_id for run in desk.plan(run_images=3)]
    for killed_after in range(3):
        other = Desk(images=desk.images)
        plans = other.found(run_images=3)
        for plan in [next(plans) for _ in range(killed_after)]:
            assert isinstance(plan, RunPlan)
            other.archive.start_run(plan)
        plans.close()
        assert [run.run_id for run in other.plan(run_images=3)] == wanted


@pytest.mark.parametrize("changes", ["shard_rows", "moved", "touched"])
def test_a_kill_before_the_plan_is_there_hinders_no_other_plan(desk: Desk, changes: str) -> None:
    desk.images.put(a="1", b="2", c="3")
    (run,) = desk.plan()
    desk.archive.store.delete(f"runs/{run.run_id}/plan.json")  # the last thing that starting a run writes
    if changes == "shard_rows":
        desk.shard_rows = 1
    elif changes == "moved":
        desk.images.root = "elsewhere://"
    else:
        desk.images.put(a="1")
    (run,) = desk.plan()
    desk.work(run)
    assert desk.plan() == []


# --- shards of another size ---------------------------------------------------------------------------


def test_a_run_of_which_nothing_is_done_is_planned_anew_with_other_shards(desk: Desk) -> None:
    desk.images.put(a="1", b="2", c="3")
    (first,) = desk.plan()
    first.store.put(scratch_key(first.run_id, 0, "state-0"), b"a worker that was killed left it")
    desk.shard_rows = 1
    (other,) = desk.plan()
    assert (ids_of(other), other.shard_rows) == (["a", "b", "c"], 1)
    assert [run.run_id for run in desk.plan()] == [other.run_id], "and not once more"


def test_a_run_of_which_something_is_done_keeps_its_shards(desk: Desk) -> None:
    desk.images.put(a="1", b="2", c="3")
    (first,) = desk.plan()
    write(first, 1)
    desk.shard_rows = 1
    assert [run.run_id for run in desk.plan()] == [first.run_id]
    first.give_up("somebody asked for it")
    (other,) = desk.plan()
    assert (ids_of(other), other.shard_rows) == (["a", "b", "c"], 1)
    desk.shard_rows = 2
    desk.work(other)
    assert desk.plan() == []


def test_a_given_up_plan_is_made_again_under_another_name(desk: Desk) -> None:
    desk.images.put(a="1")
    (first,) = desk.plan()
    first.give_up("somebody asked for it")
    (again,) = desk.plan()
    assert again.run_id != first.run_id and ids_of(again) == ["a"]


# --- which source a run is of -------------------------------------------------------------------------


def test_an_unfinished_run_of_another_source_waits(desk: Desk) -> None:
    desk.images.put(a="1")
    desk.plan()
    other = Desk(images=Images(root="other://"), archive=desk.archive)
    other.images.put(b="2")
    (run,) = other.plan()
    assert ids_of(run) == ["b"]


def test_images_that_moved_are_told_where_they_are_now(desk: Desk) -> None:
    desk.images.put(a="1", b="2", c="3")
    (run,) = desk.plan()
    desk.images.root = "elsewhere://"
    (again,) = desk.found()
    assert isinstance(again, UnfinishedRun) and again.run.run_id == run.run_id
    assert again.moved == {name: f"elsewhere://{name}" for name in "abc"}
    shards = missing_shards(again.run, again.moved)
    assert [dict(shard.places) for shard in shards] == [
        {"a": "elsewhere://a", "b": "elsewhere://b"},
        {"c": "elsewhere://c"},
    ]
    assert isinstance(shards[0], Shard)


def test_an_unfinished_run_is_of_the_source_that_has_its_places_under_other_names(desk: Desk) -> None:
    desk.images.put(**{"faces/a": "1", "faces/b": "2"})
    (first,) = desk.plan()
    below = Desk(images=Images({"a": "1", "b": "2"}, root="test://faces/"), archive=desk.archive)
    again, new = below.plan()
    assert again.run_id == first.run_id
    assert ids_of(new) == ["a", "b"]


# --- what is read -------------------------------------------------------------------------------------


def test_what_is_known_by_its_version_is_not_read_again_for_any_method(desk: Desk) -> None:
    desk.images.put(a="1", b="2")
    desk.work(*desk.plan())
    assert sorted(desk.images.reads) == ["a", "b"]
    desk.images.put(c="3")
    desk.methods = [planned(seed=1), planned()]
    one, other = desk.plan()
    assert desk.images.reads == ["c"]
    assert (ids_of(one), ids_of(other)) == (["a", "b", "c"], ["c"])
    assert one.images.column("digest").to_pylist()[:2] == [digest_bytes(b"1"), digest_bytes(b"2")]


@pytest.mark.parametrize("way", ["no version", "another version", "another place", "could not be read"])
def test_what_may_have_changed_is_read(desk: Desk, way: str) -> None:
    desk.images.put(a="no access" if way == "could not be read" else "1")
    desk.work(*desk.plan())
    if way == "no version":
        desk.images.versions.clear()
    elif way == "another version":
        desk.images.put(a="1")
    elif way == "another place":
        desk.images.root = "elsewhere://"
    else:
        desk.images.contents["a"] = "1"  # access was given, which changes no content
    assert len(desk.plan()) == (way == "could not be read")
    assert desk.images.reads == ["a"]


def test_a_new_version_of_the_same_content_is_read_once(desk: Desk) -> None:
    desk.images.put(a="1", b="2")
    desk.work(*desk.plan())
    desk.images.put(a="1")
    assert (desk.plan(), desk.images.reads) == ([], ["a"])
    assert (desk.plan(), desk.images.reads) == ([], [])


def test_ids_out_of_order_are_found_too(desk: Desk) -> None:
    """As those of an array of more than a million images, 999999 before 1000000."""
    desk.images.put(**{str(number): str(number) for number in (9, 10, 11, 8, 100)})

    class Numbers(Images):
        def items(self, left_out: LeftOut) -> Iterator[SourceItem]:
            return iter(sorted(super().items(left_out), key=lambda item: int(item.image_id)))

    desk.images = Numbers(desk.images.contents, desk.images.versions)
    desk.work(*desk.plan())
    assert (desk.plan(), desk.images.reads) == ([], [])


# --- what is done again -------------------------------------------------------------------------------


@pytest.mark.parametrize("told", [True, False], ids=["told by the manifest", "found in the rows"])
def test_content_that_was_not_there_at_its_turn_is_planned_again_once_it_is(desk: Desk, told: bool) -> None:
    desk.images.put(a="1", b="2", c="3")
    desk.work(*desk.plan(), changed=["b"], told=told)
    (run,) = desk.plan()
    assert (ids_of(run), desk.images.reads) == (["b"], ["b"])
    desk.work(run)
    assert desk.plan() == []


def test_a_result_that_is_older_than_a_change_does_not_count(desk: Desk) -> None:
    desk.images.put(a="1")
    desk.work(*desk.plan())
    desk.images.put(a="2")
    desk.work(*desk.plan(), changed=["a"])  # it was 1 again
    desk.images.put(a="1")
    (run,) = desk.plan()
    desk.work(run)
    assert desk.plan() == []


def test_images_of_retired_shards_are_planned_again_and_no_others(desk: Desk) -> None:
    desk.images.put(**{name: name for name in "abcde"})
    (first,) = desk.plan()
    desk.work(first)
    desk.archive.store.create(f"runs/{first.run_id}/_retired/00001.json", b"lost")
    (run,) = desk.plan()
    assert (ids_of(run), desk.images.reads) == (["c", "d"], ["c", "d"])
    desk.work(run)
    assert desk.plan() == []


def test_a_run_whose_every_shard_is_retired_is_planned_under_another_name(desk: Desk) -> None:
    desk.images.put(a="1")
    (first,) = desk.plan()
    desk.work(first)
    desk.archive.store.create(f"runs/{first.run_id}/_retired/00000.json", b"lost")
    (run,) = desk.plan()
    assert run.run_id != first.run_id and ids_of(run) == ["a"]


def test_telling_what_would_be_planned_writes_nothing(desk: Desk) -> None:
    desk.images.put(a="1")
    (first,) = desk.plan()
    before: dict[str, Any] = desk.archive.store.sizes()
    desk.images.put(b="2")
    unfinished, new = list(desk.found())
    assert desk.archive.store.sizes() == before
    assert isinstance(unfinished, UnfinishedRun) and unfinished.run.run_id == first.run_id
    assert isinstance(new, RunPlan) and [row.image_id for row in new.rows] == ["b"]
