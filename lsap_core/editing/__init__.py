"""Edits of W+ codes: along directions and components, towards other codes, one after another."""

from lsap_core.editing.clip_directions import channel_deviations, direction_of_text
from lsap_core.editing.components import Components, along_component
from lsap_core.editing.directions import Direction, along, conditional, to_distance
from lsap_core.editing.edits import Edit, compose
from lsap_core.editing.ganspace import CovarianceSum, fit_pca
from lsap_core.editing.mixing import interpolate, mix
from lsap_core.editing.sefa import factorize
from lsap_core.editing.style_directions import StyleDirection, add_shifts, along_styles, style_shift

__all__ = [
    "Components",
    "CovarianceSum",
    "Direction",
    "Edit",
    "StyleDirection",
    "add_shifts",
    "along",
    "along_component",
    "along_styles",
    "channel_deviations",
    "compose",
    "conditional",
    "direction_of_text",
    "factorize",
    "fit_pca",
    "interpolate",
    "mix",
    "style_shift",
    "to_distance",
]
