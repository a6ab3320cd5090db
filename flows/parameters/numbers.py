"""Numbers that a run may be asked for: finite, no claims, and none that no machine could count to."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from domains.yaml_values import LARGEST_FLOAT, LARGEST_INTEGER


def _no_claim(value: Any) -> Any:
    """YAML's true and false are numbers to Python."""
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers")
    return value


Number = Annotated[float, BeforeValidator(_no_claim), Field(ge=-LARGEST_FLOAT, le=LARGEST_FLOAT, allow_inf_nan=False)]
"""Finite, also as float32."""
Unbounded = Annotated[int, BeforeValidator(_no_claim)]
"""For a field with a bound of its own, which its message then names."""
Whole = Annotated[Unbounded, Field(le=LARGEST_INTEGER)]
Count = Annotated[Whole, Field(ge=1)]
Seed = Annotated[Whole, Field(ge=0)]
Index = Annotated[Whole, Field(ge=0)]
Share = Annotated[Number, Field(ge=0.0, le=1.0)]

MANY_IMAGES = 1_000_000
"""At most, where a number of images is held or sampled at once: more is a slip."""
MANY_SHOWN = 10_000
"""Images on one sheet."""
LARGEST_PREVIEW = 256
"""Pixels of the longer side of a kept preview; even pure noise with alpha is then no more than an archive takes."""
MANY_PROCESSES = 10_000
MANY_TRIES = 1_000
