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


def test_networks_that_a_run_names_stand_above_those_that_its_domain_has_for_one_embedding(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    files = {"hfgi": "all", "e4e/hfgi": "for_e4e", "e4e/sam": "sam_for_e4e"}
    own.write_text(
        json.dumps({"name": "own", "description": "of this test", "perceptual": "lpips-vgg", "refiners": files})
    )
    values = {"archive": "archive", "source": "images", "generator": "g.safetensors", "domain": str(own)}
    beside = {name: str(tmp_path / file) for name, file in files.items()}

    def networks(**named: str) -> dict[str, str]:
        return dict(RefineRun(**values, refiner_networks=named).resolve(Settings()).refiner_networks)

    assert networks() == beside
    assert networks(hfgi="mine") == {"hfgi": "mine", "e4e/sam": beside["e4e/sam"]}
    assert networks(**{"e4e/hfgi": "mine"}) == {**beside, "e4e/hfgi": "mine"}


def test_a_segmenter_that_is_not_known_or_out_of_reach_is_refused() -> None:
    with pytest.raises(ParameterError, match=r'segmenter: segmenter "faces" is not known; wanted one of superpixels'):
        segmenter("face", segmenter="faces")
    with pytest.raises(ParameterError, match=r"segmenter: memory://maps lives in one process"):
        segmenter("face", segmenter="maps:memory://maps")
