"""The study of editability from one command, on a few digits; and what it refuses before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from flows.parameters.reproduce_editability import ReproduceEditability
from flows.parameters.run_file import ParameterError
from lsap_archive import open_archive
from tasks.settings import Settings

SMALL: dict[str, Any] = {
    "source": "digits:test[:20]",
    "domain": "digits",
    "methods": ["e4e", "weak", "shrunk"],
    "variants": {
        "weak": {"method": "lsap_o_w_plus", "sncd_weight": 0.1, "num_steps": 8},
        "shrunk": {"method": "l2_w_plus", "num_steps": 8},
    },
    "controls": {"weak": "shrunk"},
    "changes": {"slant": 0.4, "stroke_width": 0.2},
    "reference": "digits:train[:50]",
    "synthetic_images": 100,
    "workers": {"count": 1, "device": "cpu"},
}


@pytest.mark.ray
@pytest.mark.slow
def test_one_command_edits_all_codes_alike_and_correlates(lsap_on_cluster: Any, tmp_path: Path) -> None:
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump({**SMALL, "output": str(tmp_path / "study")}))
    made = lsap_on_cluster("run", "reproduce", "editability", str(config), "--json")
    assert made.code == 0, made.err
    report = json.loads(made.out)

    reports = tmp_path / "study" / "archive" / "reports"
    values = pq.read_table(reports / "editability.parquet")
    assert values.num_rows == 3 * 20
    for name in ("effect", "success", "identity", "class_kept", "leakage", "midpoint", "detour", "sncd"):
        assert np.isfinite(values.column(name).to_numpy()).all(), name
    assert (reports / "editability.png").read_bytes().startswith(b"\x89PNG")
    assert "LSAP_O-W+, λ = 0.1; W+, L2 to the mean code" in report["table"]

    # The same number by another way: a code's measurements, straight from the archive.
    archive = open_archive(str(tmp_path / "study" / "archive"))
    (mean,) = archive.sql(
        "select avg(value) as mean from measurements where measure = 'identity' and \"by\" = 'digits-judge' "
        "and method like 'e4e/%-equal'"
    ).to_pylist()
    e4e = values.filter(pc.equal(values.column("method"), "e4e"))
    assert np.mean(e4e.column("identity").to_numpy()) == pytest.approx(mean["mean"], rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attributes": ["slant"]}, "attributes: slant; wanted two or more"),
        ({"directions": {"slant": "lean"}}, 'directions.slant: domain "digits" has no direction lean'),
        ({"controls": {"weak": "none"}}, 'controls: "none" is not among the methods'),
        ({"changes": {"age": 1}}, 'changes: "age" is not among the attributes slant, stroke_width'),
        ({"changes": {"slant": -1}}, "changes.slant: -1.0; wanted a number above 0"),
        ({"label": "("}, 'label: "(" is no regular expression'),
        ({"domain": "full_scale", "generator": "g.pt"}, "has no judge"),
    ],
)
def test_a_study_that_cannot_be_done_is_refused_before_any_work(fields: dict[str, Any], message: str) -> None:
    study = ReproduceEditability(**{**SMALL, "methods": ["lsap_o_w", "weak", "shrunk"], "output": "study", **fields})
    with pytest.raises(ParameterError) as refused:
        study.resolve(Settings())
    assert message in str(refused.value)
