"""What a training of a refiner's networks may be asked for."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from domains.domain import Domain
from flows.parameters.run_file import ParameterError, refused
from flows.parameters.trainings import TrainingRun
from lsap_core.inversion.by_encoder import EncoderSettings
from lsap_core.presets import RefinerTraining
from tasks.settings import Settings
from tasks.training.refiners import RefinerTrainingSpec
from tasks.training.spec import TrainingRequest
from tasks.training.trainable import TRAINABLE


class TrainRefinerRun(TrainingRun):
    """Train the networks of a refiner."""

    refiner: str = Field("hfgi", description=f"whose networks: {', '.join(TRAINABLE)}")
    encoder: str = Field(
        "lsap_e", description="whose codes are refined (of sfe: guide edits), by name; it stays as it is"
    )
    encoders: dict[str, str] = Field(default_factory=dict, description="weights of encoders by name, over the domain's")
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

    def resolve(self, settings: Settings) -> TrainingRequest:
        """The run with its domain's presets filled in.

        Raises:
            ParameterError: a field names something that does not exist.
        """
        domain = refused("encoders", self.resolved_domain(settings).with_encoders, self.encoders)
        method = refused("training", domain.training_of_refiner, self.refiner, self.training)
        if self.workers.count > 1:
            raise ParameterError(
                f"workers.count: {self.workers.count}; the networks of a refiner are trained by one worker, which sees "
                "whole batches: wanted 1"
            )
        spec = self._on_codes(domain, method, settings)
        return TrainingRequest(spec, self.training_workers(settings), self.workers.device)

    def _on_codes(self, domain: Domain, method: RefinerTraining[Any], settings: Settings) -> RefinerTrainingSpec:
        """Networks that are trained on codes of an encoder, or for images alone."""
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
            embedding=embedding,
            files={name: path for name, path in files.items() if path is not None},
            directions={**domain.directions, **self.directions},
        )
