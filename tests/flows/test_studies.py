"""The studies of edits, each from one command, on a few digits of one archive; and what they refuse before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from flows.parameters.reproduce_editability import ReproduceEditability
from flows.parameters.reproduce_inheritance import ReproduceInheritance
from flows.parameters.run_file import ParameterError
from flows.reproduce_inheritance import check
from lsap_archive import open_archive
from lsap_core.errors import MissingWeightsError
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


INHERITANCE: dict[str, Any] = {
    **{name: value for name, value in SMALL.items() if name not in ("methods", "variants", "controls")},
    "methods": ["e4e"],
    "refiners": ["hfgi"],
}


@pytest.fixture(scope="module")
def study(lsap_on_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, dict[str, Any]], Any]:
    """Runs a study into the folder that all of them share; returns the folder of its tables and what was printed."""
    folder = tmp_path_factory.mktemp("studies")

    def run(name: str, fields: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
        config = folder / f"{name}.yaml"
        config.write_text(yaml.safe_dump({**fields, "output": str(folder / "study")}))
        made = lsap_on_cluster("run", "reproduce", name, str(config), "--json")
        assert made.code == 0, made.err
        return folder / "study" / "archive" / "reports", json.loads(made.out)

    return run


@pytest.mark.ray
@pytest.mark.slow
def test_one_command_edits_all_codes_alike_and_correlates(study: Callable[[str, dict[str, Any]], Any]) -> None:
    reports, report = study("editability", SMALL)
    values = pq.read_table(reports / "editability.parquet")
    assert values.num_rows == 3 * 20
    for name in ("effect", "success", "identity", "class_kept", "leakage", "midpoint", "detour", "sncd"):
        assert np.isfinite(values.column(name).to_numpy()).all(), name
    assert (reports / "editability.png").read_bytes().startswith(b"\x89PNG")
    assert "LSAP_O-W+, λ = 0.1; W+, L2 to the mean code" in report["table"]

    # The same number by another way: a code's measurements, straight from the archive.
    archive = open_archive(report["archive"])
    (mean,) = archive.sql(
        "select avg(value) as mean from measurements where measure = 'identity' and \"by\" = 'digits-judge' "
        "and method like 'e4e/%-equal' and method not like 'e4e/%/%'"
    ).to_pylist()
    e4e = values.filter(pc.equal(values.column("method"), "e4e"))
    assert np.mean(e4e.column("identity").to_numpy()) == pytest.approx(mean["mean"], rel=1e-6)


@pytest.mark.ray
@pytest.mark.slow
def test_one_command_refines_edits_and_compares_with_the_code_alone(
    study: Callable[[str, dict[str, Any]], Any],
) -> None:
    reports, report = study("inheritance", INHERITANCE)
    assert (
        report["num_methods"] == 2 and "hfgi was trained on codes of another" not in report["table"]
    )  # e4e has its own
    values = pq.read_table(reports / "inheritance.parquet")
    assert values.num_rows == 2 * 3 * 20  # edits of both attributes, and of each
    assert (reports / "inheritance.png").read_bytes().startswith(b"\x89PNG")

    # The printed change by another way: from the archive's measurements.
    (found,) = (
        open_archive(report["archive"])
        .sql(
            "select avg(r.value - i.value) as change from measurements r join measurements i using (image_id, measure) "
            "where r.method = 'e4e/hfgi' and i.method = 'e4e' and measure = 'mse'"
        )
        .to_pylist()
    )
    numbers = pq.read_table(reports / "inheritance_numbers.parquet").to_pylist()
    (told,) = (one for one in numbers if (one["table"], one["column"]) == ("changes/all", "mse"))
    assert told["measured"] == pytest.approx(found["change"], rel=1e-6) and told["measured"] < 0 and told["n"] == 20


def test_refiners_without_networks_are_refused_before_anything_is_inverted(tmp_path: Path) -> None:
    output = str(tmp_path / "study")
    without = ReproduceInheritance(**{**INHERITANCE, "refiners": ["hfgi", "pti_shared"], "output": output})
    with pytest.raises(
        MissingWeightsError, match=r"refiner pti_shared needs its networks.*refiner_networks\.pti_shared="
    ):
        check(without.resolve(Settings()))
    assert not (tmp_path / "study").exists()


def test_labels_and_heads_reach_every_flow_of_a_study() -> None:
    fields = {**SMALL, "output": "study", "generator_label": 3, "heads": {"mine": "offsets"}, "refiners": ["pti"]}
    study = ReproduceInheritance(**{name: value for name, value in fields.items() if name != "controls"})
    runs = (study.inversion(), study.editing((), {"a": {}}), study.evaluation(study.edited_alike(Settings())))
    assert [run.label for run in (*runs, study.refinement())] == [3] * 4
    assert study.inversion().heads == runs[2].heads == {"mine": "offsets"}


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
