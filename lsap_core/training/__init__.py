"""Training encoders: one step, its optimizer, and what changes from step to step."""

from lsap_core.training.encoder_step import EncoderTraining
from lsap_core.training.progressive import ProgressiveSchedule
from lsap_core.training.ranger import Ranger
from lsap_core.training.settings import EncoderTrainingSettings

__all__ = ["EncoderTraining", "EncoderTrainingSettings", "ProgressiveSchedule", "Ranger"]
