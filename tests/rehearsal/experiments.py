"""The paper's experiments as their examples ask for them, but with few steps on a few photographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lsap_core.generators.config import GeneratorConfig
from tests.rehearsal.photos import FACES, VEHICLES, Photo

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = {
    "inversion.embedding.num_steps": "2",
    "inversion.anchor.num_samples": "1000",
    "inversion.shard_rows": "4",
    "refinement.refiner_settings": "{sam: {num_steps: 2}}",
    "refinement.state_type": "float32",  # filled networks find numbers beyond float16
    "batch_size": "2",
    "calibration_images": "3",
    "frechet": "inception",
    "figure4.samples": "50",
    "workers": "{count: 1, device: cpu}",
}


@dataclass(frozen=True)
class Experiment:
    """A reproduction, and what it is rehearsed with.

    Attributes:
        example: file of the run.
        generator: sizes of the generator; all others are published ones.
        photos: what is inverted.
        changes: fields of the run.
        at_work: further ones, which no check before the work asks for.
    """

    example: str
    generator: GeneratorConfig
    photos: Sequence[Photo]
    changes: Mapping[str, str]
    at_work: Mapping[str, str] = field(default_factory=dict)


EXPERIMENTS = {
    "face": Experiment(
        "reproduce_face.yaml",
        GeneratorConfig(256, (32, 32, 32, 32, 16, 16, 16)),
        FACES,
        changes=SHORT | {"synthetic.count": "2", "figure5.images": "2", "figure3.images": "2"},
        at_work={"calibration_synthetic": "8"},
    ),
    "car": Experiment(
        "reproduce_car.yaml", GeneratorConfig(512, (32, 32, 32, 32, 16, 16, 8, 8)), VEHICLES, changes=SHORT
    ),
}


@dataclass(frozen=True)
class Rehearsal:
    """An experiment in a folder of its own."""

    experiment: Experiment
    folder: Path

    @property
    def weights(self) -> Path:
        return self.folder / "weights"

    @property
    def photos(self) -> Path:
        return self.folder / "photos"

    @property
    def archive(self) -> Path:
        return self.folder / "archive"

    @property
    def output(self) -> Path:
        return self.folder / "page"

    @property
    def variables(self) -> dict[str, str]:
        """Of the environment."""
        return {"LSAP_BACKBONES": str(self.weights), "LSAP_OTHER_WEIGHTS": "1"}

    def arguments(self, *, at_work: bool = False) -> list[str]:
        """Of `lsap`: the example with other places and fewer steps."""
        changes = {
            "source": str(self.photos),
            "archive": str(self.archive),
            "output": str(self.output),
            **self.experiment.changes,
            **(self.experiment.at_work if at_work else {}),
        }
        settings = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
        return ["run", "reproduce", "all", str(EXAMPLES / self.experiment.example), *settings]
