"""What a reproduction of Table 3 may be asked for."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from flows.parameters.invert import InvertRun
from flows.parameters.numbers import MANY_IMAGES, MANY_TRIES, Count, Index, Number, Seed
from flows.parameters.run_file import ParameterError, Parameters, refused
from flows.parameters.shared import LABEL, WorkerParameters, check_workers
from flows.parameters.train_encoder import TrainEncoderRun
from lsap_core.presets import TRAININGS
from tasks.reports.paper.seeds import Variant
from tasks.settings import Settings
from tasks.training.spec import TrainingRequest
from tasks.weights.of_domains import find_domain

Weight = Annotated[Number, Field(ge=0.0)]


class ReproduceTable3(Parameters):
    """Train pSp, e4e and LSAP_E over lambda with several seeds, invert held-out images, and compare."""

    source: str = Field(description="images to train on")
    evaluation_source: str = Field(description="held-out images to compare on")
    output: str = Field(description="path or URL of the folder for encoders, archive and tables")
    validation_source: str | None = Field(None, description="images to validate on; by default some of the source's")
    validation_images: Count = Field(256, le=MANY_IMAGES, description="images to validate on")
    domain: str = Field("full_scale", description="name of a built-in domain, or the path of one's own .yaml")
    generator: str | None = Field(None, description="weights; the domain's by default")
    label: Index | None = Field(None, description=LABEL)
    encoders: tuple[str, ...] = Field(("psp", "e4e", "lsap_e"), description="trainings to compare as published")
    sncd_weights: tuple[Weight, ...] = Field(
        (0.0, 0.1, 0.25, 0.5, 0.75, 1.0), description="lambda of LSAP_E in the sweep; empty for none"
    )
    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1, description="each trains every encoder once")
    sweep_seeds: tuple[Seed, ...] | None = Field(None, min_length=1, description="of the sweep; `seeds` by default")
    training: dict[str, Any] = Field(default_factory=dict, description="settings of every training, over the domain's")
    training_run: dict[str, Any] = Field(
        default_factory=dict, description="further fields of every training, such as backbone_weights or identity"
    )
    checkpoint_every: Count = Field(2000, description="steps from one complete state to the next")
    parallel: Count = Field(1, le=MANY_TRIES, description="trainings at the same time")
    workers: WorkerParameters = WorkerParameters()

    def variants(self) -> tuple[tuple[Variant, ...], tuple[Variant, ...]]:
        """The published encoders, and LSAP_E by rising lambda; a variant may be in both.

        Raises:
            ParameterError: no training has that name, or a number stands twice.
        """
        if unknown := sorted(set(self.encoders) - set(TRAININGS)):
            raise ParameterError(f'encoders: "{unknown[0]}" is not known; wanted some of {", ".join(TRAININGS)}')
        for field in ("encoders", "sncd_weights", "seeds", "sweep_seeds"):
            given = getattr(self, field) or ()
            if len(set(given)) != len(given):
                raise ParameterError(f"{field}: {', '.join(map(str, given))} has something twice")
        if not self.encoders and not self.sncd_weights:
            raise ParameterError("encoders and sncd_weights are both empty: there is nothing to compare")
        presets = refused("domain", find_domain, self.domain).encoder_training

        def published(name: str) -> Variant:
            return _variant(name, presets.method(name, self.training).settings.sncd_weight)

        encoders = tuple(refused("training", published, name) for name in self.encoders)
        return encoders, tuple(_variant("lsap_e", weight) for weight in sorted(self.sncd_weights))

    def trainings(self) -> dict[str, TrainEncoderRun]:
        """Every training by the name of its encoder: the published ones seed by seed, then the sweep.

        Raises:
            ParameterError: as `variants`, or a field of `training_run` does not exist.
        """
        published, sweep = self.variants()
        wanted = [(variant, seed) for seed in self.seeds for variant in published]
        wanted += [(variant, seed) for seed in self.sweep_seeds or self.seeds for variant in sweep]
        return {variant.encoder(seed): self._training(variant, seed) for variant, seed in wanted}

    def resolve(self, settings: Settings) -> dict[str, TrainingRequest]:
        """The trainings with their domain's presets filled in.

        Raises:
            ParameterError: a field names something that does not exist.
        """
        check_workers(self.workers, max(self.workers.count, self.parallel), settings)
        return {name: training.resolve(settings) for name, training in self.trainings().items()}

    def inversion(self) -> InvertRun:
        """The inversion of the held-out images by all encoders."""
        names = tuple(self.trainings())
        return InvertRun(
            source=self.evaluation_source,
            archive=f"{self.output.rstrip('/')}/archive",
            domain=self.domain,
            generator=self.generator,
            label=self.label,
            methods=names,
            encoders={name: f"{self._folder(name)}/encoder.safetensors" for name in names},
            workers=self.workers,
            report_images=4,
        )

    def _training(self, variant: Variant, seed: int) -> TrainEncoderRun:
        fields = {
            "source": self.source,
            "validation_source": self.validation_source,
            "validation_images": self.validation_images,
            "domain": self.domain,
            "generator": self.generator,
            "label": self.label,
            "checkpoint_every": self.checkpoint_every,
            "validate_every": self.checkpoint_every,
            **self.training_run,
            "output": self._folder(variant.encoder(seed)),
            "method": variant.method,
            "training": {**self.training, "sncd_weight": variant.sncd_weight},
            "seed": seed,
            "workers": {**self.workers.model_dump(exclude={"min_count", "patience_seconds", "memory_gb"}), "count": 1},
        }
        try:
            return TrainEncoderRun.of(fields)
        except ParameterError as error:
            raise ParameterError(f"training_run: {error}") from error

    def _folder(self, encoder: str) -> str:
        return f"{self.output.rstrip('/')}/encoders/{encoder}"


def _variant(method: str, sncd_weight: float) -> Variant:
    title = TRAININGS[method].title
    if method == "lsap_e":
        return Variant(f"{method}-{sncd_weight:g}", f"{title}, λ = {sncd_weight:g}", method, sncd_weight)
    return Variant(method, title, method, sncd_weight)
