"""A method of a new kind is its file and its line of presets; all else takes it as it takes the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from domains.domain import Domain
from lsap_archive import ArchiveKeyError, Store, StoreUnavailableError
from lsap_core.errors import ConfigError
from lsap_core.inversion import EncoderState, Inversion, Parts
from lsap_core.presets import METHODS, Method, settings_of

# --- what would be lsap_core/inversion/mean_code.py ---------------------------------------------------


@dataclass(frozen=True)
class MeanCodeSettings:
    kind: ClassVar[str] = "mean_code"
    keeps_noise: ClassVar[bool] = False
    needs_encoder: ClassVar[bool] = False
    trace_steps: ClassVar[tuple[int, ...]] = ()
    trace_terms: ClassVar[tuple[str, ...]] = ()

    num_steps: int = 2
    share: float = 0.5

    def embedder(self, parts: Parts) -> MeanCodeEmbedder:
        return MeanCodeEmbedder(parts, self)

    def why_stopped(self, step: int) -> tuple[str, str]:
        return "non_finite_code", f"the mean code was not finite at step {step}: take another generator"


class MeanCodeEmbedder:
    """Goes from 0 to the mean of W, at every step by the same share of what is left; no image is looked at."""

    def __init__(self, parts: Parts, settings: MeanCodeSettings):
        self.generator, self.anchor, self.settings = parts.generator, parts.anchor, settings

    def start(self, seeds: Sequence[int], *, target: Tensor) -> EncoderState:
        config = self.generator.config
        return EncoderState(torch.zeros(len(seeds), config.num_ws, config.w_dim, device=target.device))

    def advance(
        self,
        state: EncoderState,
        target: Tensor,
        *,
        until: int | None = None,
        after_step: Callable[[EncoderState], None] | None = None,
    ) -> None:
        while state.step < (self.settings.num_steps if until is None else until):
            state.codes = state.codes + self.settings.share * (self.anchor.w_avg - state.codes)
            state.step += 1
            if after_step is not None:
                after_step(state)

    @torch.no_grad()
    def finish(self, state: EncoderState) -> Inversion:
        none = state.codes.new_zeros(len(state.codes), 0, 0)
        image = self.generator.synthesize(state.codes)
        num_steps = torch.full((len(image),), self.settings.num_steps)
        return Inversion(state.codes, (), image, none, (), (), state.stopped_at, num_steps)


# ------------------------------------------------------------------------------------------------------

MEAN_CODE = Method("mean_code", "Mean code", MeanCodeSettings(num_steps=3))


@pytest.fixture(autouse=True)
def line_in_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "mean_code", MEAN_CODE)


def test_it_is_planned_embedded_measured_and_archived(laboratory: Any) -> None:
    laboratory.fill(3)
    prepared = laboratory.prepare(methods=(MEAN_CODE,))
    worker = laboratory.worker(prepared, batch_size=2)
    outcome = worker(prepared.shards[0])
    assert (outcome.by_status, outcome.resumed_at, worker.progress()) == ({"ok": 3}, 0, 3)
    archive = laboratory.publish(prepared)
    rows = archive.rows().to_pylist()
    ids = [row["image_id"] for row in rows]
    wanted = (1 - 0.5**3) * worker.anchor.w_avg.expand(3, worker.generator.config.num_ws, -1).numpy()
    np.testing.assert_allclose(archive.codes(ids, "mean_code"), wanted, rtol=1e-5)
    assert [(row["num_steps"], row["final_loss"]) for row in rows] == [(3, None)] * 3
    assert all(np.isfinite([row["lpips"], row["sncd"], row["mse"]]).all() for row in rows)
    for kept in (archive.noise, archive.trace):
        with pytest.raises(ArchiveKeyError):
            kept(ids, "mean_code")
    (run,) = archive.runs
    assert (run.config["settings"], run.config["noise"]) == (
        {"kind": "mean_code", "num_steps": 3, "share": 0.5},
        "constant",
    )
    assert settings_of(run.config) == MEAN_CODE.settings
    assert laboratory.prepare(methods=(MEAN_CODE,)).runs == ()  # it is there


def test_it_is_taken_up_where_it_stopped(laboratory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    laboratory.fill(1)
    prepared = laboratory.prepare(methods=(MEAN_CODE,))
    put, saved = Store.put, []

    def put_twice(self: Store, key: str, data: bytes) -> None:
        if len(saved) == 2:
            raise StoreUnavailableError("the store went away")
        saved.append(key)
        put(self, key, data)

    with monkeypatch.context() as patch, pytest.raises(StoreUnavailableError):
        patch.setattr(Store, "put", put_twice)
        laboratory.worker(prepared, save_every_seconds=0)(prepared.shards[0])
    (outcome,) = laboratory.embed(prepared)
    assert (outcome.resumed_at, outcome.by_status) == (2, {"ok": 1})


def test_files_of_domains_and_runs_can_set_it() -> None:
    domain = Domain("own", "of this test", "lpips-vgg", methods={"all": {"num_steps": 5, "num_passes": 2}})
    chosen = domain.method("mean_code", {"share": 1})
    assert chosen.settings == MeanCodeSettings(num_steps=5, share=1.0)
    with pytest.raises(ConfigError, match="method mean_code has no setting 'sncd_weight'; it has encoder, num_steps"):
        domain.method("mean_code", {"sncd_weight": 1})


def test_an_archive_with_a_kind_that_is_not_there_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(METHODS, "mean_code")
    with pytest.raises(ConfigError, match='method of kind "mean_code"; this package has optimization, encoder'):
        settings_of({"settings": {"kind": "mean_code", "num_steps": 3, "share": 0.5}})
