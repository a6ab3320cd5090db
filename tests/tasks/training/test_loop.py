"""The loop of a training: whatever happens to it on the way, it ends with the same bytes."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import tasks.training.loop
from domains.digits.data import load_split
from lsap_archive import Store, StoreUnavailableError
from lsap_core.errors import CheckpointError, TrainingDivergedError
from lsap_core.presets import training
from tasks.archived.anchors import AnchorOptions
from tasks.training.data import TooManyBadImagesError
from tasks.training.encoders import EncoderTrainingSpec
from tasks.training.loop import TrainingOutcome, train_networks
from tasks.training.plan import prepare_training
from tasks.training.store import BEST_KEY, LAST_KEY, LATEST_KEY, TrainingStore
from tasks.weights.encoders import load_encoder
from tasks.weights.generators import GeneratorFile, load_generator
from tasks.weights.networks import NetworkChoice

# Everything that a state consists of: heads that join, a discriminator with pools and its penalty, SNCD.
SETTINGS = {
    "batch_size": 4,
    "num_steps": 8,
    "progressive_start": 2,
    "progressive_every": 1,
    "adversarial_weight": 0.1,
    "r1_every": 3,
    "pool_size": 6,
    "learning_rate": 1e-3,
}
NETWORKS = NetworkChoice("digits-features", "digits-features", identity="digits-features")
CLOCKS = ("time", "images_per_second")

NewTraining = Callable[..., EncoderTrainingSpec]


class Killed(BaseException):
    """Not an Exception: nothing on the way may take it for one."""


@pytest.fixture(scope="session")
def new_training(generator_file: str) -> NewTraining:
    """Makes trainings of 18 digits in folders of their own; a setting is changed by its name."""

    def new(*, method: str = "lsap_e", output: str | None = None, **changes: Any) -> EncoderTrainingSpec:
        settings = {**SETTINGS, **{name: changes.pop(name) for name in list(changes) if name in SETTINGS}}
        values: dict[str, Any] = {
            "output": output or f"memory://training-{uuid.uuid4().hex}",
            "source": "digits:train[:18]",
            "generator": GeneratorFile(generator_file),
            "method": training(method, **settings),
            "networks": NETWORKS,
            "anchor": AnchorOptions(num_samples=64),
            "validation_images": 5,
            "backbone": "small",
            "augmentation": "digits",
            "log_every": 2,
            "validate_every": 4,
            "checkpoint_every": 3,
            "sheet_images": 3,
        }
        return EncoderTrainingSpec(**{**values, **changes})

    return new


def train(spec: EncoderTrainingSpec, *, kill_at: int | None = None) -> TrainingOutcome:
    """Prepare and train, as a command does."""

    def after_step(step: int) -> None:
        if step == kill_at:
            raise Killed

    prepare_training(spec)
    return train_networks(spec, device=torch.device("cpu"), after_step=after_step)


def contents(spec: EncoderTrainingSpec) -> dict[str, Any]:
    """Everything in a folder but clocks, as values that can be compared."""
    store = Store.from_url(spec.output)
    found: dict[str, Any] = {}
    for key in store.sizes():
        if key.endswith((".parquet", "latest.json")) or key.startswith("tensorboard"):
            found[key] = None  # hold clocks; that they are there is compared, and below what is in them
        elif key.endswith(".safetensors"):
            found[key] = plain(safetensors.torch.load(store.get(key)))
        elif key.endswith(".pt"):
            found[key] = plain(torch.load(io.BytesIO(store.get(key)), weights_only=True))
        elif key not in ("run.json", "progress.json"):
            found[key] = store.get(key)
    for name in ("metrics", "validation", "problems"):
        table = TrainingStore(spec.output).table(name)
        rows = [] if table is None else table.to_pylist()
        found[f"rows of {name}"] = [{name: row[name] for name in row if name not in CLOCKS} for row in rows]
    return found


def plain(value: Any) -> Any:
    """Tensors as bytes, inside whatever holds them."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


@pytest.fixture(scope="module")
def undisturbed(new_training: NewTraining) -> dict[str, Any]:
    """What a training without an interruption leaves."""
    spec = new_training()
    train(spec)
    return contents(spec)


@pytest.fixture(scope="module")
def finished(new_training: NewTraining, tmp_path_factory: pytest.TempPathFactory) -> EncoderTrainingSpec:
    """A training of three steps that is over; left as it is."""
    spec = new_training(num_steps=3, output=str(tmp_path_factory.mktemp("finished")))
    train(spec)
    return spec


# --- interrupted is uninterrupted ---------------------------------------------------------------------


@pytest.mark.parametrize("kills", [(1,), (4, 7), (8,)])
def test_a_killed_training_ends_with_the_same_bytes(
    kills: tuple[int, ...], new_training: NewTraining, undisturbed: dict[str, Any]
) -> None:
    """Weights, slow weights, discriminator, pools, sampler, curves, sheets, the best encoder and the last one."""
    spec = new_training()
    for kill_at in kills:
        with pytest.raises(Killed):
            train(spec, kill_at=kill_at)
    resumed_at = train(spec).resumed_at
    assert resumed_at == (8 if kills[-1] == 8 else kills[-1] // 3 * 3)
    found = contents(spec)
    assert found.keys() == undisturbed.keys()
    assert [key for key in found if found[key] != undisturbed[key]] == []


def test_a_state_counts_from_the_moment_of_its_switch(
    new_training: NewTraining, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the last file of a commit and the switch, the rows are neither doubled nor lost."""
    spec, put = new_training(), Store.put

    def put_until_the_second_switch(self: Store, key: str, data: bytes) -> None:
        if key == LATEST_KEY and self.exists(LATEST_KEY):
            raise Killed
        put(self, key, data)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Store, "put", put_until_the_second_switch)
        train(spec)
    store = TrainingStore(spec.output)
    assert store.latest().step == 3  # type: ignore[union-attr]
    assert store.store.exists("checkpoints/step-00000006.pt") and store.store.exists(
        "metrics/part-00000004-00000006.parquet"
    )
    assert max(row["step"] for row in store.table("metrics").to_pylist()) <= 3  # type: ignore[union-attr]
    assert train(spec).resumed_at == 3
    found = contents(spec)
    assert [key for key in {*found, *undisturbed} if found.get(key) != undisturbed.get(key)] == []


def test_a_storage_that_fails_for_a_moment_is_asked_again(
    new_training: NewTraining, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, put, failures = new_training(), Store.put, iter([True, False, True])

    def put_now_and_then(self: Store, key: str, data: bytes) -> None:
        if key == LATEST_KEY and next(failures, False):
            raise StoreUnavailableError("no answer")
        put(self, key, data)

    monkeypatch.setattr(tasks.training.loop, "WAIT_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(Store, "put", put_now_and_then)
    train(spec)
    assert contents(spec) == undisturbed


def test_more_steps_go_on_where_fewer_ended(new_training: NewTraining, undisturbed: dict[str, Any]) -> None:
    spec = new_training(num_steps=6)
    train(spec)
    longer = replace(spec, method=spec.method.with_settings({"num_steps": 8}))
    assert not prepare_training(longer).is_finished
    assert train(longer).resumed_at == 6
    assert contents(longer)[LAST_KEY] == undisturbed[LAST_KEY]


def test_a_finished_training_has_nothing_to_do(finished: EncoderTrainingSpec) -> None:
    spec = finished
    before = contents(spec)
    assert prepare_training(spec).is_finished
    assert train(spec) == TrainingOutcome(
        3, 3, 3, pytest.approx(TrainingStore(spec.output).latest().summary["best"]["loss"])
    )  # type: ignore[union-attr]
    assert contents(spec) == before


@pytest.mark.parametrize("method", ["psp", "restyle_psp"])
def test_other_methods_go_on_as_well(method: str, new_training: NewTraining) -> None:
    changes = {"progressive_start": None, "adversarial_weight": 0.0, "num_steps": 4, "checkpoint_every": 2}
    one, other = (new_training(method=method, **changes) for _ in range(2))
    with pytest.raises(Killed):
        train(one, kill_at=3)
    train(one)
    train(other)
    assert contents(one)[LAST_KEY] == contents(other)[LAST_KEY]


# --- what is left -------------------------------------------------------------------------------------


def test_the_folder_of_a_training(new_training: NewTraining, tmp_path: Path, generator_file: str) -> None:
    spec = new_training(output=str(tmp_path / "training"))
    outcome = train(spec)
    store = TrainingStore(spec.output)
    rows = store.table("metrics").to_pylist()  # type: ignore[union-attr]
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert [row["stage"] for row in rows] == [0, 2, 4, 6]
    terms = {"loss", "l2", "lpips", "identity", "sncd", "delta", "adversarial", "gradient_norm", "discriminator"}
    assert all(np.isfinite(row[term]) for row in rows for term in terms)
    assert rows[-1]["epoch"] == 8 * 4 / 13
    validation = store.table("validation").to_pylist()  # type: ignore[union-attr]
    assert [(row["step"], row["num_images"]) for row in validation] == [(4, 5), (8, 5)]
    best = min(validation, key=lambda row: row["loss"])
    assert (outcome.best_step, outcome.best_loss) == (best["step"], best["loss"])
    digest = load_generator(generator_file).digest
    for key, step in ((LAST_KEY, 8), (BEST_KEY, best["step"])):
        loaded = load_encoder(str(tmp_path / "training" / key))
        assert (loaded.generator_digest, loaded.title, loaded.options["step"]) == (digest, "LSAP_E", step)
        assert loaded.options["settings"]["sncd_weight"] == 0.5
    names = sorted(path.name for path in (tmp_path / "training" / "checkpoints").iterdir())
    assert names == ["latest.json", "step-00000006.pt", "step-00000008.pt"]  # the newest two
    with Image.open(tmp_path / "training" / "sheets" / "step-00000008.png") as sheet:
        assert sheet.size == (3 * (64 + 4), 2 * 64 + 4)  # three digits over their reconstructions
    assert store.progress()["step"] == 8  # type: ignore[index]


def test_a_state_is_read_without_running_anything(finished: EncoderTrainingSpec) -> None:
    store = TrainingStore(finished.output)
    data = store.store.get(store.latest().key)  # type: ignore[union-attr]
    state = torch.load(io.BytesIO(data), weights_only=True)
    assert state["sampler"] == {"seed": 0, "position": 12}
    assert {"encoder", "ranger", "adversary", "step"} <= state["training"].keys()


# --- what goes wrong ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty files, two of which are no images."""
    (tmp_path / "images").mkdir()
    for number, image in enumerate(load_split("train").images[:18]):
        Image.fromarray(image).save(tmp_path / "images" / f"{number:02d}.png")
    for name in ("18.png", "19.png"):
        (tmp_path / "images" / name).write_bytes(b"no image")
    return tmp_path / "images"


def test_bad_images_are_told_and_sink_nothing_below_the_limit(new_training: NewTraining, folder: Path) -> None:
    changes = {"source": str(folder), "validation_source": "digits:test[:4]", "max_failed_share": 0.1}
    one, other = (new_training(**changes) for _ in range(2))
    with pytest.raises(Killed):
        train(one, kill_at=7)
    train(one)
    train(other)
    found = contents(one)
    assert found == contents(other)
    bad = {(row["image_id"], row["reason"]) for row in found["rows of problems"]}
    assert bad == {("18.png", "not_an_image"), ("19.png", "not_an_image")}
    assert TrainingStore(one.output).latest().summary["num_bad_images"] == 2  # type: ignore[union-attr]


def test_too_many_bad_images_end_it_with_the_remedy(new_training: NewTraining, folder: Path) -> None:
    spec = new_training(source=str(folder), validation_source="digits:test[:4]", max_failed_share=0.05)
    with pytest.raises(TooManyBadImagesError, match=r"2 of the 20 images .* above the limit of 5%.*max_failed_share"):
        train(spec)


def test_a_loss_that_is_not_finite_ends_it_and_keeps_what_was_before(new_training: NewTraining) -> None:
    spec = new_training(learning_rate=1e30, checkpoint_every=1, num_steps=20)
    with pytest.raises(TrainingDivergedError, match="learning_rate"):
        train(spec)
    store = TrainingStore(spec.output)
    saved = store.latest()
    if saved is not None:
        state = store.load(saved)["training"]["encoder"]
        assert all(tensor.isfinite().all() for tensor in state.values())


def test_a_damaged_state_is_refused_by_name(finished: EncoderTrainingSpec) -> None:
    spec = replace(finished, output=f"memory://training-{uuid.uuid4().hex}")
    store, whole = TrainingStore(spec.output), Store.from_url(finished.output)
    for kept in whole.sizes():
        store.store.put(kept, whole.get(kept))
    key = store.latest().key  # type: ignore[union-attr]
    store.store.put(key, store.store.get(key)[:-1])
    with pytest.raises(CheckpointError, match=r"step-00000003.pt has \d+ bytes and another digest.*train anew"):
        train_networks(spec, device=torch.device("cpu"))
    store.store.delete(key)
    with pytest.raises(CheckpointError, match=r"step-00000003.pt does not exist"):
        train_networks(spec, device=torch.device("cpu"))


def test_a_generator_that_was_exchanged_is_refused(new_training: NewTraining) -> None:
    spec = new_training(num_steps=3)
    prepare_training(spec)
    with pytest.raises(CheckpointError, match="another output"):
        train_networks(
            replace(spec, generator=GeneratorFile("domains/digits/generator.safetensors")), device=torch.device("cpu")
        )
