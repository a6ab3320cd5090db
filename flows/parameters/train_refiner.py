"""What a training of a refiner's networks may be asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from domains.domain import Domain
from flows.parameters.run_file import ParameterError, refused
from flows.parameters.shared import HEADS, refuse_memory
from flows.parameters.trainings import TrainingRun
from lsap_core.encoders.config import Heads
from lsap_core.inversion.by_encoder import EncoderSettings
from lsap_core.presets import REFINER_TRAININGS, RefinerTraining
from lsap_core.refinement.sam import SamSettings
from lsap_core.refinement.sam_spaces import file_part, space_names
from lsap_core.training.pti_settings import PtiTrainingSettings
from lsap_core.training.sam_step import PredictorTrainingSettings
from tasks.settings import Settings
from tasks.training.predictors import PredictorTrainingSpec
from tasks.training.pti import PtiTrainingSpec
from tasks.training.refiners import RefinerTrainingSpec
from tasks.training.spec import TrainingRequest, TrainingSpec
from tasks.training.trainable import TRAINABLE

OF_CODES = ("encoders", "heads", "backbone_weights", "inverter", "discriminator", "directions")
"""Fields of trainings on the codes of an encoder alone."""
OF_INVERSIONS = ("archive", "subject", "inversions")
"""Fields of trainings on what an archive has."""


class TrainRefinerRun(TrainingRun):
    """Train the networks of a refiner for the codes of an encoder, or on inversions of an archive."""

    written: ClassVar[tuple[str, ...]] = ("output",)  # the archive is read

    refiner: str = Field("hfgi", description=f"whose networks: {', '.join(REFINER_TRAININGS)}")
    encoder: str = Field(
        "lsap_e",
        description="whose codes are refined (of sfe: guide edits; of sam: were inverted), by name; it stays as it is",
    )
    encoders: dict[str, str] = Field(default_factory=dict, description="weights of encoders by name, over the domain's")
    heads: dict[str, Heads] = Field(default_factory=dict, description=HEADS)
    backbone_weights: str | None = Field(
        None, description="a trained backbone to start from (hyperstyle, sfe_inverter)"
    )
    inverter: str | None = Field(None, description="networks with the Inverter that sfe is trained for")
    discriminator: str | None = Field(
        None, description="to start from (sfe_inverter, sfe), unless its term has no weight"
    )
    directions: dict[str, str] = Field(
        default_factory=dict, description="files of directions by name, over the domain's (sfe: training.edits)"
    )
    archive: str | None = Field(
        None, description="of pti_shared and sam: path or URL of the archive that has the inversions"
    )
    subject: str = Field("lsap_e", description="of pti_shared: which inversions of the images, by name")
    inversions: dict[str, str] = Field(
        default_factory=dict,
        description="of sam: refinements by latent space, such as {F4: lsap_e/sam_f4}; by default those of the encoder "
        "with the names sam_w_plus, sam_f4, ...",
    )

    def resolve(self, settings: Settings) -> TrainingRequest:
        """The run with its domain's presets filled in.

        Raises:
            ParameterError: a field names something that does not exist.
        """
        domain = refused("encoders", self.resolved_domain(settings).with_encoders, self.encoders, self.heads)
        method = refused("training", domain.training_of_refiner, self.refiner, self.training)
        if self.workers.count > 1:
            raise ParameterError(
                f"workers.count: {self.workers.count}; the networks of a refiner are trained by one worker, which sees "
                "whole batches: wanted 1"
            )
        if isinstance(method.settings, PtiTrainingSettings):
            spec = self._tuned(domain, method, settings)
        elif isinstance(method.settings, PredictorTrainingSettings):
            spec = self._of_errors(domain, method, settings)
        else:
            spec = self._on_codes(domain, method, settings)
        return TrainingRequest(spec, self.training_workers(settings), self.workers.device)

    def _on_codes(self, domain: Domain, method: RefinerTraining[Any], settings: Settings) -> TrainingSpec:
        """Networks that are trained on codes of an encoder, or for images alone."""
        self._refuse_given(OF_INVERSIONS)
        has_encoder = TRAINABLE[method.name].has_encoder
        if has_encoder and self.encoder not in domain.encoders:
            raise ParameterError(
                f'encoder: nobody says where "{self.encoder}" lies; wanted one of '
                f"{', '.join(domain.encoders) or 'none there'}, or its file: encoders.{self.encoder}=..."
            )
        embedding = domain.method(self.encoder).settings if has_encoder else EncoderSettings()
        assert isinstance(embedding, EncoderSettings)  # a domain refuses encoders with names of other methods
        files = {
            "backbone_weights": self.backbone_weights,
            "inverter": self.inverter,
            "discriminator": self.discriminator,
        }
        return RefinerTrainingSpec(
            **self.shared_fields(domain, method.settings.identity_weight, settings),
            method=method,
            encoder=domain.encoders[self.encoder] if has_encoder else None,
            encoder_name=self.encoder,
            heads=domain.heads.get(self.encoder),
            embedding=embedding,
            files={name: path for name, path in files.items() if path is not None},
            directions={**domain.directions, **self.directions},
        )

    def _tuned(self, domain: Domain, method: RefinerTraining[Any], settings: Settings) -> TrainingSpec:
        """Weights that are tuned to inversions of an archive; images stay as they were inverted."""
        self._refuse_given((*OF_CODES, "encoder", "inversions", "validation_source", "augmentation", "fit", "identity"))
        fields = {**self.shared_fields(domain, 0.0, settings), "augmentation": "none"}
        return PtiTrainingSpec(**fields, method=method, archive=self._named_archive(), subject=self.subject)

    def _of_errors(self, domain: Domain, method: RefinerTraining[Any], settings: Settings) -> TrainingSpec:
        """A predictor that is trained from inversions in each space that the domain's refiner chooses from."""
        self._refuse_given((*OF_CODES, "subject", "identity"))
        # The predictor speaks of the distance that its domain's threshold and inversions are measured by.
        domain = replace(domain, encoder_training=replace(domain.encoder_training, perceptual=None))
        fields = self.shared_fields(domain, 0.0, settings)
        refiner = domain.refiner(self.refiner).settings
        assert isinstance(refiner, SamSettings)
        config = fields["generator"].load().config
        spaces = refiner.spaces or space_names(config, refiner.placement)
        if unknown := sorted(set(self.inversions) - set(spaces)):
            raise ParameterError(f'inversions: "{unknown[0]}" is none of its spaces, {", ".join(spaces)}')
        names = {space: f"{self.encoder}/{self.refiner}_{file_part(space)}" for space in spaces}
        return PredictorTrainingSpec(
            **fields,
            method=method,
            archive=self._named_archive(),
            inversions={**names, **self.inversions},
            placement=refiner.placement,
        )

    def _named_archive(self) -> str:
        """The archive with the inversions that are trained on."""
        if self.archive is None:
            raise ParameterError(f"archive: none given; {self.refiner} is trained on the inversions of one")
        refuse_memory("archive", self.archive)
        return self.archive

    def _refuse_given(self, names: tuple[str, ...]) -> None:
        """Fields that mean nothing to this training."""
        for name in names:
            if name in self.model_fields_set:
                raise ParameterError(f"{name}: {self.refiner} is trained without; leave it out")
