"""What a training of a refiner's networks may be asked for."""

from __future__ import annotations

from pydantic import Field

from flows.parameters.run_file import ParameterError, refused
from flows.parameters.trainings import TrainingRun
from lsap_core.inversion.by_encoder import EncoderSettings
from tasks.settings import Settings
from tasks.training.refiners import RefinerTrainingSpec
from tasks.training.spec import TrainingRequest


class TrainRefinerRun(TrainingRun):
    """Train the networks of a refiner for the codes of an encoder."""

    refiner: str = Field("hfgi", description="hfgi")
    encoder: str = Field("lsap_e", description="whose codes are refined, by name; it stays as it is")
    encoders: dict[str, str] = Field(default_factory=dict, description="weights of encoders by name, over the domain's")

    def resolve(self, settings: Settings) -> TrainingRequest:
        """The run with its domain's presets filled in.

        Raises:
            ParameterError: a field names something that does not exist.
        """
        domain = refused("encoders", self.resolved_domain(settings).with_encoders, self.encoders)
        if self.encoder not in domain.encoders:
            raise ParameterError(
                f'encoder: nobody says where "{self.encoder}" lies; wanted one of '
                f"{', '.join(domain.encoders) or 'none there'}, or its file: encoders.{self.encoder}=..."
            )
        if self.workers.count > 1:
            raise ParameterError(
                f"workers.count: {self.workers.count}; the networks of a refiner are trained by one worker, which sees "
                "whole batches: wanted 1"
            )
        method = refused("training", domain.training_of_refiner, self.refiner, self.training)
        embedding = domain.method(self.encoder).settings
        assert isinstance(embedding, EncoderSettings)  # a domain refuses encoders with names of other methods
        spec = RefinerTrainingSpec(
            **self.shared_fields(domain, method.settings.identity_weight, settings),
            method=method,
            encoder=domain.encoders[self.encoder],
            encoder_name=self.encoder,
            embedding=embedding,
        )
        return TrainingRequest(spec, self.training_workers(settings), self.workers.device)
