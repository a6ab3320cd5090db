"""Edits of W+ codes: along directions and components, towards other codes, one after another."""

from lsap_core.editing.components import Components, along_component
from lsap_core.editing.directions import Direction, along, conditional, to_distance
from lsap_core.editing.edits import Edit, compose
from lsap_core.editing.ganspace import CovarianceSum, fit_pca
from lsap_core.editing.mixing import interpolate, mix
from lsap_core.editing.sefa import factorize

__all__ = [
    "Components",
    "CovarianceSum",
    "Direction",
    "Edit",
    "along",
    "along_component",
    "compose",
    "conditional",
    "factorize",
    "fit_pca",
    "interpolate",
    "mix",
    "to_distance",
]
