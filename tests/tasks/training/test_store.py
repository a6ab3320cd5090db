"""The folder of a training: whose it is, what counts, what a killed process may leave there."""

from __future__ import annotations

import struct
import uuid
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from lsap_archive import CorruptArchiveError, Store
from tasks.training.events import event_file
from tasks.training.store import LATEST_KEY, RUN_KEY, OtherRunError, TrainingStore

IDENTITY = {"generator": "abc", "training.sncd_weight": 0.5, "init_from": None, "anchor": {"seed": 0}}


@pytest.fixture
def store() -> TrainingStore:
    return TrainingStore(f"memory://training-{uuid.uuid4().hex}")


def commit(store: TrainingStore, step: int, first: int, **changes: Any) -> None:
    rows = {"metrics": [{"step": step, "time": 1.5, "loss": 1 / step}]}
    store.commit(step, {"step": step}, rows, first=first, **{"summary": {"best": {}}, "keep": 2, **changes})


def test_a_folder_belongs_to_one_training(store: TrainingStore) -> None:
    assert not store.check(IDENTITY)
    store.claim(IDENTITY, {})
    store.claim(IDENTITY, {})
    assert store.check(IDENTITY) and store.identity() == IDENTITY
    other = {**IDENTITY, "training.sncd_weight": 0.25, "seed": 1}
    with pytest.raises(
        OtherRunError, match=r"seed is nothing there, 1 here; training.sncd_weight is 0.5 there, 0.25 h"
    ):
        store.claim(other, {})
    assert store.identity() == IDENTITY


def test_a_folder_that_somebody_edited_is_refused_by_name(store: TrainingStore) -> None:
    store.claim(IDENTITY, {})
    store.store.put(RUN_KEY, store.store.get(RUN_KEY).replace(b"abc", b"abd"))
    with pytest.raises(CorruptArchiveError, match=r"run\.json"):
        store.check(IDENTITY)


def test_what_was_committed_is_there_and_old_states_are_not(store: TrainingStore) -> None:
    assert store.latest() is None and store.table("metrics") is None
    for step in (2, 4, 6):
        commit(store, step, first=step - 1)
    saved = store.latest()
    assert saved is not None and saved.step == 6
    assert store.load(saved) == {"step": 6}
    assert store.table("metrics").column("step").to_pylist() == [2, 4, 6]  # type: ignore[union-attr]
    assert store.store.keys("checkpoints") == [
        LATEST_KEY,
        "checkpoints/step-00000004.pt",
        "checkpoints/step-00000006.pt",
    ]


def test_a_process_that_was_given_up_does_not_turn_the_time_back(store: TrainingStore) -> None:
    commit(store, 2, first=1)
    commit(store, 4, first=3)
    commit(store, 2, first=1)
    assert store.latest().step == 4  # type: ignore[union-attr]
    assert store.store.exists("checkpoints/step-00000004.pt")


def test_what_lies_beyond_the_newest_state_is_removed(store: TrainingStore) -> None:
    commit(store, 2, first=1)
    saved = store.store.get(LATEST_KEY)
    commit(store, 4, first=3)
    store.put_sheet(4, b"png")
    store.store.put(LATEST_KEY, saved)  # as if the switch had not come to pass
    assert store.table("metrics").column("step").to_pylist() == [2]  # type: ignore[union-attr]
    store.forget_after(2)
    left = [key for key in store.store.sizes() if "00004" in key]
    assert left == ["checkpoints/step-00000004.pt"]  # written again, or dropped as an old one


def test_columns_may_join_later(store: TrainingStore) -> None:
    commit(store, 2, first=1)
    rows = {"metrics": [{"step": 4, "time": 2.5, "loss": 0.5, "r1": 7.0}]}
    store.commit(4, {}, rows, first=3, summary={}, keep=2)
    assert store.table("metrics").column("r1").to_pylist() == [None, 7.0]  # type: ignore[union-attr]


def test_event_files_hold_the_same_numbers() -> None:
    metrics = [{"step": step, "time": 100.0 + step, "loss": 0.5 / step, "epoch": None} for step in (1, 2)]
    data = event_file(metrics, [{"step": 2, "time": 103.0, "num_images": 8, "loss": 0.25}])
    found = {}
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        data = data[12 + length + 4 :]
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
            assert event.wall_time in (101.0, 102.0, 103.0)
    assert found == {
        ("train/loss", 1): 0.5,
        ("train/loss", 2): 0.25,
        ("validation/num_images", 2): 8.0,
        ("validation/loss", 2): 0.25,
    }


def test_the_store_knows_its_url_without_secrets() -> None:
    assert TrainingStore("s3://bucket/run").url == "s3://bucket/run"
    assert isinstance(TrainingStore("memory://run").store, Store)
