"""Fields of a refinement: where its segmenter comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.parameters.refine import RefineRun
from flows.parameters.run_file import ParameterError
from tasks.settings import Settings


def segmenter(domain: str, **fields: Any) -> str:
    values = {"archive": "archive", "source": "images", "generator": "g.safetensors", "refiners": ("sam",), **fields}
    return RefineRun(domain=domain, **values).resolve(Settings()).segmenter


def test_the_segmenter_of_a_run_is_the_domain_s_or_its_own(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    values = {"name": "own", "description": "of this test", "perceptual": "lpips-vgg", "segmenter": "maps:labels"}
    own.write_text(json.dumps(values))
    assert segmenter("face") == "face" and segmenter("digits") == segmenter("full_scale") == "superpixels"
    assert segmenter(str(own)) == f"maps:{tmp_path}/labels"
    assert segmenter("face", segmenter="face_with_hair") == "face_with_hair"


def test_a_segmenter_that_is_not_known_or_out_of_reach_is_refused() -> None:
    with pytest.raises(ParameterError, match=r'segmenter: segmenter "faces" is not known; wanted one of superpixels'):
        segmenter("face", segmenter="faces")
    with pytest.raises(ParameterError, match=r"segmenter: memory://maps lives in one process"):
        segmenter("face", segmenter="maps:memory://maps")
