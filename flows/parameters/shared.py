"""Fields that several flows have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flows.parameters.run_file import Parameters

WhenBusy = Annotated[
    Literal["wait", "refuse"],
    Field(description="what to do while another run writes the same part of the archive: wait for its end, or fail"),
]
"""A field of everything that writes."""


class AnchorParameters(Parameters):
    """How the anchor of synthetic codes is estimated."""

    num_samples: int = Field(50_000, ge=2, description="codes to sample; the paper evaluates with 50,000")
    style_set: Literal["authors", "conv", "full"] = Field("authors", description="which style vectors form S")
    seed: int = Field(0, description="of the sampled codes")


class PlaceParameters(Parameters):
    """What each worker gets."""

    gpus_each: float | None = Field(
        None, ge=0.0, description="GPUs, or the share of one, for each worker; by default the cluster's are shared out"
    )
    threads: int = Field(1, ge=1, description="CPU threads for each worker")
    device: str = Field("auto", description='"auto", "cpu", "cuda", ...')


class WorkerParameters(PlaceParameters):
    """How many workers do the work, and on what."""

    count: int = Field(2, ge=1, description="workers at most, each with its own networks; a cluster may have less room")
    min_count: int | None = Field(
        None, ge=1, description="workers that stay when there is less to do; one on a cluster, all on one machine"
    )

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> WorkerParameters:
        if self.min_count is not None and self.min_count > self.count:
            raise ValueError(f"min_count is {self.min_count}, more than count, which is {self.count}")
        return self
