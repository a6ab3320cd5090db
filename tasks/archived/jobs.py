"""What runs and evaluations have in common while they are planned."""

from __future__ import annotations

PROVENANCE_PACKAGES = ("torch", "ray", "prefect", "lpips", "pillow", "safetensors")
