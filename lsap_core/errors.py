"""What this library raises when a caller asks for something it cannot do."""

import difflib
from collections.abc import Iterable

LEAST_ALIKE = 0.6  # share of letters that a slip of the pen leaves


class LsapError(Exception):
    """Base of every error that `lsap_core` raises on purpose."""


class ShapeError(LsapError, ValueError):
    """A tensor has another shape than the computation is defined for."""


class ConfigError(LsapError, ValueError):
    """A setting contradicts another one, or lies outside its range."""


class OutOfReachError(LsapError, ValueError):
    """What was asked for cannot be reached by any setting within its range."""


class CheckpointError(LsapError, ValueError):
    """A file of weights is not what it should be: wrong kind, truncated, or hostile."""


class MissingWeightsError(LsapError, FileNotFoundError):
    """Weights that a network needs are not on this machine."""


class TrainingDivergedError(LsapError, ArithmeticError):
    """A loss or gradient is no longer finite; the weights are those before the step."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question for a message about a name that is not known, with a space after it; empty where none is like it.

    Args:
        name: as it was asked for.
        known: the names that there are.

    Example:
        >>> did_you_mean("lsap_ee", ["psp", "e4e", "lsap_e"])
        'did you mean "lsap_e"? '
        >>> did_you_mean("faces", ["digits"])
        ''
    """
    near = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=LEAST_ALIKE)
    return f'did you mean "{near[0]}"? ' if near else ""
