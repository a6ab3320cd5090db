"""Stage 2, result refinement: codes of any embedding and their images in, refined images that can be edited out."""

from lsap_core.refinement.refinement import (
    STORED_DTYPE,
    Embedded,
    Refined,
    Refinement,
    RefinementParts,
    RefinementSettings,
    Refiner,
    StateArray,
    as_stored,
)

__all__ = [
    "STORED_DTYPE",
    "Embedded",
    "Refined",
    "Refinement",
    "RefinementParts",
    "RefinementSettings",
    "Refiner",
    "StateArray",
    "as_stored",
]
