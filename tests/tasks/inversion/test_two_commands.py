"""Commands that know nothing of each other, and commands that were killed: what the other one or the next one does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lsap_archive import IncompleteRunError, RunWriter, Store, open_archive, repair_archive, verify_archive
from tasks.inversion.plan import InversionStage
from tasks.stage import Job


@pytest.fixture
def stages(laboratory: Any) -> Any:
    """Makes stages of commands over one source of seven images; they are closed at the end."""
    laboratory.fill(7)
    opened: list[InversionStage] = []

    def begin(**changes: Any) -> InversionStage:
        opened.append(InversionStage(laboratory.request(**changes)))
        return opened[-1]

    yield begin
    for stage in opened:
        stage.close()


def embed(stage: InversionStage, job: Job) -> None:
    worker = stage.build_worker()
    for shard in job.shards:
        worker(shard)


def finish(stage: InversionStage, *jobs: Job) -> list[str]:
    """Work and publish as the flow does; what the command has to say."""
    for job in jobs:
        embed(stage, job)
        stage.publish(job.job_id)
    return stage.notes


def check_once(laboratory: Any, num_retired: int) -> None:
    archive = open_archive(laboratory.archive)
    assert archive.sql("select image_id from latest order by image_id").column(0).to_pylist() == [
        f"{number}.png" for number in range(archive.rows(history=True).num_rows)
    ]
    report = verify_archive(laboratory.archive)
    assert report.is_sound and (report.counts["unfinished_runs"], report.counts["retired_runs"]) == (0, num_retired)
    assert not [key for key in laboratory.contents() if "/_staging/" in key]
    assert repair_archive(laboratory.archive).summary().endswith("nothing to repair")


@pytest.mark.parametrize("is_first_to_end", [0, 1])
def test_two_commands_with_other_shards_end_well_and_every_image_counts_once(
    laboratory: Any, stages: Callable[..., InversionStage], is_first_to_end: int
) -> None:
    """Both have planned before one has anything done."""
    begun = [stages(shard_rows=4), stages(shard_rows=2)]
    planned = [(stage, *stage.jobs()) for stage in begun]
    early, late = planned[is_first_to_end], planned[1 - is_first_to_end]
    assert not any("not published" in note for note in finish(*early))
    (told,) = [note for note in finish(*late) if "not published" in note]
    assert f"run {late[1].job_id} was not published: all its images are in run {early[1].job_id}" in told
    check_once(laboratory, 1)
    again = stages(shard_rows=16)
    assert list(again.jobs()) == [] and again.notes == []


@pytest.mark.parametrize("is_first_to_end", [0, 1])
def test_commands_that_fit_otherwise_share_the_images_that_need_it_not(
    laboratory: Any, stages: Callable[..., InversionStage], is_first_to_end: int
) -> None:
    """A wide image is refused by one and cropped by the other: that is not the same twice, the rest is."""
    begun = begun_with_other_fits(laboratory, stages, "wide.png")
    told = [note for at in (is_first_to_end, 1 - is_first_to_end) for note in finish(*begun[at])]
    assert not any("not published" in note for note in told)
    found = open_archive(laboratory.archive).sql("select image_id, status, reason, altered from history").to_pylist()
    squares = [f"{number}.png" for number in range(9)]
    assert sorted(row["image_id"] for row in found) == [*squares, "wide.png", "wide.png"]
    wide = {(row["status"], row["reason"], row["altered"]) for row in found if row["image_id"] == "wide.png"}
    assert wide == {("failed", "not_square", None), ("ok", None, "cropped")}
    assert verify_archive(laboratory.archive).is_sound
    assert repair_archive(laboratory.archive).summary().endswith("nothing to repair")


def test_where_no_image_needs_to_be_fitted_the_second_command_publishes_nothing(
    laboratory: Any, stages: Callable[..., InversionStage]
) -> None:
    first, (second, job) = begun_with_other_fits(laboratory, stages)
    finish(*first)
    assert f"run {job.job_id} was not published" in "".join(finish(second, job))
    check_once(laboratory, 1)


def begun_with_other_fits(laboratory: Any, stages: Any, *wide: str) -> list[tuple[InversionStage, Job]]:
    """Two commands that have planned two new images and some wide ones of a method that the archive has already."""
    first = stages()
    finish(first, *first.jobs())
    laboratory.fill(9)
    for name in wide:
        laboratory.put(name, laboratory.picture(9, 32, 48))
    both = [stages(fit="refuse"), stages(fit="crop", shard_rows=2)]
    return [(stage, *stage.jobs()) for stage in both]


def test_a_plan_that_cannot_be_finished_holds_nobody(laboratory: Any, stages: Callable[..., InversionStage]) -> None:
    (first,) = stages(shard_rows=96).jobs()
    second = stages(shard_rows=4)
    (job,) = second.jobs()
    assert job.job_id != first.job_id and job.is_new and not job.note
    (told,) = finish(second, job)
    assert f"run {first.job_id} was planned with shard_rows 96 and nothing of it is done" in told
    check_once(laboratory, 1)


def test_a_plan_of_another_source_is_left_to_it(laboratory: Any, stages: Any, tmp_path: Any) -> None:
    (first,) = stages(shard_rows=4).jobs()
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "x.png").write_bytes(laboratory.picture(99))
    other = stages(source=str(tmp_path / "others"), shard_rows=2)
    assert finish(other, *other.jobs()) == []
    (again,) = stages(shard_rows=4).jobs()
    assert again.job_id == first.job_id


def test_a_run_that_is_begun_goes_on_with_its_shards_and_the_way_out_is_told(
    laboratory: Any, stages: Callable[..., InversionStage]
) -> None:
    stage = stages(shard_rows=4)
    (job,) = stage.jobs()
    stage.build_worker()(job.shards[1])
    other = stages(shard_rows=2)
    (again,) = other.jobs()
    assert again.job_id == job.job_id and [shard.index for shard in again.shards] == [0]
    assert again.note == (
        f"run {job.job_id} was begun with shard_rows 4, and parts of it are done: it goes on so, and not with 2; to "
        f"give it up instead, with what is done of it: lsap archive repair {laboratory.archive} --give-up {job.job_id}"
    )
    assert other.notes == [again.note]
    RunWriter.open(laboratory.archive, job.job_id).give_up("somebody asked for it")
    with pytest.raises(IncompleteRunError, match="given up while it was worked on"):
        finish(other, again)
    third = stages(shard_rows=2)
    assert finish(third, *third.jobs()) == []
    check_once(laboratory, 1)
    assert "all its images are in" in finish(other, again)[-1]


def test_an_unfinished_run_whose_images_are_there_is_not_gone_on_with(
    laboratory: Any, stages: Callable[..., InversionStage]
) -> None:
    """Its command was killed, and another one had the same images and ended."""
    killed, other = stages(shard_rows=4), stages(shard_rows=2)
    (left,) = killed.jobs()
    jobs = list(other.jobs())
    killed.build_worker()(left.shards[0])
    finish(other, *jobs)
    third = stages(shard_rows=4)
    assert list(third.jobs()) == []
    assert third.notes[0].startswith(f"run {left.job_id}, which was unfinished, is given up: all its images are in")
    check_once(laboratory, 1)


# --- what killed commands leave -----------------------------------------------------------------------


def requests_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Everything that is asked of a store from now on, as it is asked."""
    asked: list[str] = []

    def count(verb: str, ask: Callable[..., Any]) -> Callable[..., Any]:
        def counted(store: Store, *arguments: Any) -> Any:
            asked.append(f"{verb} {arguments[0] if arguments else ''}")
            return ask(store, *arguments)

        return counted

    for name in ("get", "size", "sizes", "folders", "put", "create", "copy", "delete"):
        monkeypatch.setattr(Store, name, count(name, getattr(Store, name)))
    return asked


def kill(monkeypatch: pytest.MonkeyPatch, place: str, stage: InversionStage, job: Job) -> None:
    """The command dies while it publishes, when it comes to this function of the package."""

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"lsap_archive.{place}", die)
        with pytest.raises(KeyboardInterrupt):
            stage.publish(job.job_id)


@pytest.mark.parametrize(
    "place",
    [
        "writing.overlaps.Overlaps.settle",
        "writing.run_writer.RunWriter.tidy",
        "writing.publication.Publication.keep_copies",
        "stores.store.Store.delete_folder",
    ],
)
def test_what_a_kill_while_publishing_leaves_is_tidied_by_the_next_command(
    laboratory: Any, stages: Callable[..., InversionStage], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    stage = stages()
    (job,) = stage.jobs()
    embed(stage, job)
    kill(monkeypatch, place, stage, job)
    assert any("/_staging/" in key for key in laboratory.contents())
    assert list(stages().jobs()) == []
    check_once(laboratory, 0)
    assert verify_archive(laboratory.archive).information == []


@pytest.mark.parametrize("place", ["writing.publication.Publication.remove_work", "stores.store.Store.delete_folder"])
def test_what_a_kill_while_giving_up_leaves_is_tidied_by_the_next_command(
    laboratory: Any, stages: Callable[..., InversionStage], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    begun = [stages(shard_rows=4), stages(shard_rows=2)]
    (early, first), (late, second) = [(stage, *stage.jobs()) for stage in begun]
    finish(early, first)
    embed(late, second)
    kill(monkeypatch, place, late, second)
    assert list(stages(shard_rows=4).jobs()) == []
    check_once(laboratory, 1)
    kept = {
        key.split("/")[2] for key in laboratory.contents() if key.startswith(f"runs/{second.job_id}/") and "/c/" in key
    }
    assert kept == {"image_id", "step", "term"}  # with which it began, as with its plan


def test_two_that_published_at_once_are_settled_by_the_next_command(
    laboratory: Any, stages: Callable[..., InversionStage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both were killed before they could look again at what the other one did."""
    planned = [(stage, *stage.jobs()) for stage in (stages(shard_rows=4), stages(shard_rows=2))]
    for stage, job in planned:
        embed(stage, job)
    with monkeypatch.context() as patch:
        patch.setattr("lsap_archive.writing.overlaps.Overlaps.give_up_if_seen", lambda *_: None)
        for stage, job in planned:
            kill(monkeypatch, "writing.overlaps.Overlaps.settle", stage, job)
    assert len(verify_archive(laboratory.archive).problems) == 7
    assert list(stages(shard_rows=4).jobs()) == []
    check_once(laboratory, 1)


def test_looking_for_what_is_left_costs_a_listing_for_each_run_of_the_methods(
    laboratory: Any, stages: Callable[..., InversionStage], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (0, 1):
        stage = stages(seed=seed)
        finish(stage, *stage.jobs())
    asked = requests_of(monkeypatch)
    assert list(stages(seed=0).jobs()) == []
    assert [one for one in asked if "_staging" in one] == [
        f"sizes runs/{run.run_id}/_staging" for run in open_archive(laboratory.archive).runs if run.config["seed"] == 0
    ]
    assert len(asked) <= 30, asked
