"""Whether a worker compiles the steps of its optimizations, and where compiled code is kept."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Literal

from lsap_core.generators.config import GeneratorConfig
from lsap_core.inversion.compilation import Compilation, compiling_pays
from tasks.settings import Settings

logger = logging.getLogger(__name__)

Compile = Literal["auto", "always", "never"]

CODE_FOLDER = "TORCHINDUCTOR_CACHE_DIR"
"""The variable that torch reads; one that somebody set stays."""
TORCHS_OWN = "torchinductor_"
"""How the folder begins that torch itself sets the variable to, below one for passing files, as soon as it loads what
compiles; workers have it from the command, whose folder for passing files goes with it."""


class Compiling:
    """What compiles the steps of one worker, whichever runs they are of."""

    def __init__(self, asked: Compile, config: GeneratorConfig, *, device: str):
        self.asked = asked
        self.config = config
        self.device = device
        self._compilations: dict[int, Compilation] = {}  # by the size of batches

    def of(self, image_steps: int, *, batch_size: int) -> Compilation | None:
        """What compiles a run's steps, or None where they run as they are written.

        Args:
            image_steps: images times steps that a worker does of the run as it was planned, so that a run which is
                resumed decides alike.
            batch_size: images of its batches.
        """
        if self.asked == "never":
            return None
        if self.asked == "auto" and not compiling_pays(self.config, image_steps, self.device):
            return None
        if batch_size not in self._compilations:
            if Path(os.environ.get(CODE_FOLDER, TORCHS_OWN)).name.startswith(TORCHS_OWN):
                os.environ[CODE_FOLDER] = str(Settings.from_environment().cache_folder / "compiled")
            self._compilations[batch_size] = Compilation(batch_size, tell=logger.warning)
        return self._compilations[batch_size]
