"""What a training of an encoder may be asked for: typed, described, refused before any work when it is wrong."""

from __future__ import annotations

from typing import get_args

from pydantic import Field

from flows.parameters.numbers import Whole
from flows.parameters.run_file import ParameterError, refused
from flows.parameters.shared import MOST_SAMPLES, AnchorParameters
from flows.parameters.trainings import TrainingRun, one_of
from lsap_core.encoders.config import Backbone
from lsap_core.errors import did_you_mean
from lsap_core.presets import TRAININGS
from tasks.archived.anchors import AnchorOptions
from tasks.settings import Settings
from tasks.training.encoders import EncoderTrainingSpec
from tasks.training.spec import TrainingRequest


class TrainingAnchorParameters(AnchorParameters):
    """How the anchor of SNCD is estimated."""

    num_samples: Whole = Field(
        100_000, ge=2, le=MOST_SAMPLES, description="codes to sample; LSAP's authors train with 100,000"
    )


class TrainEncoderRun(TrainingRun):
    """Train an encoder for a generator."""

    method: str = Field("lsap_e", description="psp, e4e, lsap_e, restyle_psp or restyle_e4e")
    backbone: Backbone | None = Field(None, description="ir_se_50, resnet_34 or small; the domain's by default")
    backbone_weights: str | None = Field(None, description="file that the backbone starts from: model_ir_se50.pth")
    init_from: str | None = Field(None, description="file of an encoder to start from; not needed to resume")
    anchor: TrainingAnchorParameters = TrainingAnchorParameters()

    def resolve(self, settings: Settings) -> TrainingRequest:
        """The run with its domain's presets filled in.

        Raises:
            ParameterError: a field names something that does not exist.
        """
        domain = self.resolved_domain(settings)
        presets = domain.encoder_training
        if self.method not in TRAININGS:
            near = did_you_mean(self.method, TRAININGS)
            raise ParameterError(f'method: "{self.method}" is not known; {near}wanted one of {", ".join(TRAININGS)}')
        if self.init_from is not None and self.backbone_weights is not None:
            raise ParameterError("backbone_weights: init_from gives the whole encoder, its backbone too; leave one out")
        method = refused("training", presets.method, self.method, self.training)
        batch_size, count = method.settings.batch_size, self.workers.count
        if batch_size % count:
            raise ParameterError(
                f"workers.count: {count} workers cannot share a batch of {batch_size} equally; wanted a divisor of it"
            )
        spec = EncoderTrainingSpec(
            **self.shared_fields(domain, method.settings.identity_weight, settings),
            method=method,
            anchor=AnchorOptions(**self.anchor.model_dump()),
            backbone=self.backbone or one_of("backbone", presets.backbone, get_args(Backbone)),
            backbone_weights=self.backbone_weights,
            init_from=self.init_from,
        )
        return TrainingRequest(spec, self.training_workers(settings), self.workers.device)
