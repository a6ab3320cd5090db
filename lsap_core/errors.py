"""What this library raises when a caller asks for something it cannot do."""


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
