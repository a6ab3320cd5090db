"""Fields that several flows have."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, model_validator

from domains.domain import Domain
from flows.parameters.numbers import LARGEST_PREVIEW, MANY_PROCESSES, Count, Number, Unbounded, Whole
from flows.parameters.run_file import ParameterError, Parameters, refused
from tasks.inversion.run_planner import RUN_IMAGES
from tasks.machine_memory import in_words
from tasks.settings import Settings
from tasks.weights.devices import check_device, memory_of, num_gpus
from tasks.weights.generators import GeneratorFile
from tasks.weights.of_domains import open_domain

WhenBusy = Annotated[
    Literal["wait", "refuse"],
    Field(description="what to do while another run writes the same part of the archive: wait for its end, or fail"),
]
"""A field of everything that writes."""
PreviewSide = Annotated[
    Unbounded,
    Field(
        ge=0,
        le=LARGEST_PREVIEW,
        description="longer side, in pixels, of the small pictures that the archive keeps to be looked at without the "
        "generator; smaller images keep their size, and 0 keeps none",
    ),
]
"""A field of everything whose results are images."""
PREVIEWS = 128
"""Its value where nothing is said."""
LABEL = "class of a conditional generator whose codes are sampled; by default the mean over its classes"
HEADS = (
    'how encoders make rows of W+, by name, where their files do not say it: "direct" (pSp), "offsets" (e4e, LSAP_E) '
    'or "single"; over the domain\'s'
)
MOST_SAMPLES = 10**9
WORKER_BYTES = 2**28
"""What a process with torch in it takes before it holds any weights."""


class AnchorParameters(Parameters):
    """How the anchor of synthetic codes is estimated."""

    num_samples: Whole = Field(
        50_000, ge=2, le=MOST_SAMPLES, description="codes to sample; the paper evaluates with 50,000"
    )
    style_set: Literal["authors", "conv", "full"] = Field("authors", description="which style vectors form S")
    seed: Whole = Field(0, ge=-(2**63), description="of the sampled codes")


class PlaceParameters(Parameters):
    """What each worker gets."""

    gpus_each: Number | None = Field(
        None,
        ge=0.0,
        le=1024.0,
        description="GPUs, or the share of one, for each worker; by default the cluster's are shared out",
    )
    threads: Count = Field(1, le=1024, description="CPU threads for each worker")
    device: str = Field("auto", description='"auto", "cpu", "cuda", "cuda:0", ...')


class WorkerParameters(PlaceParameters):
    """How many workers do the work, and on what."""

    count: Count = Field(
        2, le=MANY_PROCESSES, description="workers at most, each with its own networks; a cluster may have less room"
    )
    min_count: Count | None = Field(
        None, description="workers that stay when there is less to do; one on a cluster, all on one machine"
    )
    memory_gb: Number | None = Field(
        None,
        gt=0,
        le=2**15,
        description="GiB that each worker may take, of which its batches follow; by default its share of what is free",
    )
    patience_seconds: Number = Field(
        1800.0,
        ge=1,
        le=7 * 24 * 3600,
        description="a worker that makes no step for so long, and for three times the slowest shard so far, is ended "
        "and its shard tried again elsewhere",
    )

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> WorkerParameters:
        if self.min_count is not None and self.min_count > self.count:
            raise ValueError(f"min_count is {self.min_count}, more than count, which is {self.count}")
        return self


def domain_of(name: str, generator: str | None, settings: Settings, *, label: int | None = None) -> Domain:
    """A run's domain, with the run's generator and label where it names one.

    Raises:
        ParameterError: there is no such domain, or no generator.
    """
    domain = refused("domain", open_domain, name, settings)
    if generator is None and domain.generator is None:
        raise ParameterError(f'generator: domain "{domain.name}" has no weights of its own; name a file')
    chosen = domain if generator is None else replace(domain, generator=generator)
    return chosen if label is None else replace(chosen, label=label)


def generator_of(domain: Domain) -> GeneratorFile:
    """The generator of a run's domain."""
    assert domain.generator is not None  # `domain_of` refuses one without
    return GeneratorFile(domain.generator, domain.content_box, domain.label)


def checked_shard_rows(asked: int) -> int:
    """Images of a shard, as a run or a domain asks for them.

    Raises:
        ParameterError: no archive has such shards.
    """
    if asked > RUN_IMAGES or (asked > 16 and asked % 16):
        raise ParameterError(
            f"shard_rows: {asked}; wanted 1 to 16, or a multiple of 16 up to {RUN_IMAGES}, the images of a run"
        )
    return asked


def check_workers(workers: PlaceParameters, count: int, settings: Settings) -> None:
    """Workers that this machine cannot have, where no cluster is named: one may have, or get, what is not here.

    Raises:
        ParameterError: there is no such device, or not so many GPUs, or no room for so many processes.
    """
    refused("workers.device", check_device, workers.device, settings.is_alone)
    if not settings.is_alone:
        return
    gpus = num_gpus()
    if workers.gpus_each is not None and workers.device != "cpu" and workers.gpus_each > gpus:
        raise ParameterError(
            f"workers.gpus_each: {workers.gpus_each:g}; this machine has {gpus}, and no cluster is named"
        )
    if count * WORKER_BYTES > (has := memory_of("cpu")):
        wants = in_words(count * WORKER_BYTES)
        raise ParameterError(
            f"workers.count: {count} processes take {wants} of memory at least, and this machine has {in_words(has)}; "
            f"wanted at most {has // WORKER_BYTES}, or a cluster (LSAP_RAY_ADDRESS)"
        )


def refuse_memory(field: str, url: str) -> None:
    """Workers have to reach what a run writes to.

    Raises:
        ParameterError: they do not.
    """
    if url.startswith("memory://"):
        raise ParameterError(
            f"{field}: {url} lives in one process, and workers are processes of their own; "
            "wanted a folder or s3://bucket/prefix"
        )
