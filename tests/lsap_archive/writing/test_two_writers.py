"""Two writers of one run, in every order of what they ask of the store: one shard is kept, and nothing is left over."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lsap_archive import ArchiveNotFoundError, RunWriter, Store, code_arrays, scratch_key, verify_archive
from lsap_archive.stores import local_files

ASKED = ("get", "size", "sizes", "put", "create", "copy", "delete", "delete_folder", "delete_temporary")
PATIENCE = 30.0


class Turns:
    """Whose turn it is to ask something of the store: each phase has a writer and how often, at most."""

    def __init__(self, *phases: tuple[str, int]) -> None:
        self._phases = list(phases)
        self._changed = threading.Condition()
        self._own = threading.local()
        self.begun: set[str] = set()
        self.asked: dict[str, int] = {}

    def take(self, writer: str, ask: Callable[[], Any]) -> Any:
        if writer not in self.begun or getattr(self._own, "is_asking", False):  # the latter: part of what is asked
            return ask()
        with self._changed:
            assert self._changed.wait_for(lambda: self._phases[0][0] == writer, PATIENCE)
        self._own.is_asking = True
        try:
            return ask()
        finally:
            self._own.is_asking = False
            with self._changed:
                self.asked[writer] = self.asked.get(writer, 0) + 1
                (_, left), *others = self._phases
                self._phases = others if left == 1 else [(writer, left - 1), *others]
                self._changed.notify_all()

    def end(self, writer: str) -> None:
        """The writer asks no more."""
        with self._changed:
            self._phases = [phase for phase in self._phases if phase[0] != writer] or [("nobody", 1)]
            self._changed.notify_all()


def store_of(place: Any, writer: str, turns: Turns) -> Store:
    """A store that asks only when it is this writer's turn."""
    store: Store = place.store

    def in_turn(name: str) -> Callable[..., Any]:
        asked = getattr(Store, name)
        return lambda *arguments, **named: turns.take(writer, lambda: asked(store, *arguments, **named))

    for name in ASKED:
        setattr(store, name, in_turn(name))
    return store


@pytest.fixture(autouse=True)
def one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer asks one thing at a time, so that its steps have an order."""
    monkeypatch.setattr("lsap_archive.stores.concurrency._CONCURRENT_REQUESTS", 1)


@pytest.fixture
def begun(work: Any) -> Callable[[Any], None]:
    """Puts a run into a place of which the last shard is left to do."""

    def begin(place: Any) -> None:
        writer = place.writer()
        run = writer.start_run(work.plan(arrays=code_arrays(writer.geometry)))
        for shard in (0, 1):
            assert work.write(run, shard)

    return begin


def race(place: Any, work: Any, *phases: tuple[str, int]) -> dict[str, int]:
    """Two writers do the last shard of a run and publish it; how often each asked the store.

    One of them wins, what it wrote is kept, and nothing is left of what the other did.
    """
    turns, errors = Turns(*phases), []
    won: dict[str, bool] = {}

    def write(writer: str, seed: int) -> None:
        try:
            store = store_of(place, writer, turns)
            run = RunWriter(store, "run-1", {"digest": "9f86d081", "name": "tiny"}, place.writer().geometry)
            assert run.images.num_rows == 5  # read before: one property at a time is computed, of whichever instance
            turns.begun.add(writer)
            won[writer] = work.write(run, 2, seed, writer)
            run.promote_committed()
            run.publish({})
        except BaseException as error:  # raised below, in the test's own thread
            errors.append(error)
        finally:
            turns.end(writer)

    threads = [threading.Thread(target=write, args=(writer, seed)) for writer, seed in (("a", 0), ("b", 7))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    if errors:
        raise errors[0]
    run = RunWriter.open(place.url, "run-1", place.options)
    commit = run.commit_of(2)
    assert won == {"a": commit.attempt == "a", "b": commit.attempt == "b"}
    kept = {file.name: file.sha256 for file in run.manifest().files}
    for one in commit.objects:
        assert kept[one.name] == one.sha256 == place.store.digest(f"runs/run-1/{one.name}")[1]
    assert place.store.keys("runs/run-1/_staging") == []
    return turns.asked


def orders(asked: dict[str, int], step: int) -> Iterator[tuple[tuple[str, int], ...]]:
    """The one begins, the other goes on from some moment to another, and what is left is done in turn."""
    for first, other in (("a", "b"), ("b", "a")):
        moments = itertools.product(range(1, asked[first], step), range(1, asked[other], step))
        yield from (((first, i), (other, j), (first, 999), (other, 999)) for i, j in moments)


def test_in_whichever_order_two_writers_ask_the_store(memory_place: Any, work: Any, begun: Any) -> None:
    begun(memory_place)
    begin = {key: memory_place.store.get(key) for key in memory_place.store.sizes()}
    asked = race(memory_place, work, ("a", 999), ("b", 999))
    for phases in orders(asked, 5):
        memory_place.store.delete_folder("runs")
        for key, data in begin.items():
            memory_place.store.put(key, data)
        race(memory_place, work, *phases)
    report = verify_archive(memory_place.url)
    assert report.is_sound and report.information == []


@pytest.mark.parametrize("staged", [2, 8])
def test_one_publishes_while_the_other_stages(place: Any, work: Any, begun: Any, staged: int) -> None:
    begun(place)
    race(place, work, ("b", staged), ("a", 999), ("b", 999))


def test_who_writes_while_another_tidies_up_writes_once_more(
    local_place: Any, work: Any, published: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is gone before it has its name, and perhaps the folder too; another's marker was first all the same."""
    run, store = published(local_place), local_place.store
    takes_folder = itertools.cycle([False, True])
    write, written = local_files._write_synced, []

    def write_and_lose(path: str, data: bytes) -> None:
        write(path, data)
        if len(written) % 2 == 0:
            store.delete_temporary("runs")
            if next(takes_folder):
                store.delete_folder("runs/run-1/_staging")
        written.append(path)

    monkeypatch.setattr(local_files, "_write_synced", write_and_lose)
    late = run.stage(1, work.arrays(run, 1, 7), work.rows(run, 1, 7), "late")
    assert not run.commit(late)
    run.discard(late)
    assert len(written) == 2 * (len(late.objects) + 1)
    assert not store.has_folder("runs/run-1/_staging")
    assert verify_archive(local_place.url).information == []


def test_a_copy_of_what_is_gone_is_told_at_once(local_place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_files, "_undisturbed", lambda write: pytest.fail("there is nothing to write"))
    with pytest.raises(ArchiveNotFoundError):
        local_place.store.copy("gone", "there")


def test_what_a_lost_attempt_saved_after_the_run_was_published_goes_with_it(quick_place: Any, work: Any) -> None:
    """A worker saves its state below `_staging` now and then, also when another command has published meanwhile."""
    run = quick_place.writer().start_run(work.plan())
    work.write_all(run)
    assert run.publish({})
    quick_place.store.put(scratch_key("run-1", 1, "state-0"), b"half")
    assert not run.is_tidy
    assert not work.write(run, 1, attempt="late")
    assert run.is_tidy
