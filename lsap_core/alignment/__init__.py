"""What LSAP adds: the anchor of synthetic codes in S^N, and the S^N cosine distance (SNCD) to it."""

from lsap_core.alignment.anchor import Anchor, estimate_anchor
from lsap_core.alignment.references import ReferenceRows, reference_rows
from lsap_core.alignment.sncd import SncdLoss, SncdMetric, sncd_per_layer

__all__ = [
    "Anchor",
    "ReferenceRows",
    "SncdLoss",
    "SncdMetric",
    "estimate_anchor",
    "reference_rows",
    "sncd_per_layer",
]
