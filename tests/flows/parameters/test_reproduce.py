"""What a reproduction asks of the flows below it, and what is refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from domains.domain import load_domain
from flows.parameters.paper_parts import PARTS
from flows.parameters.reproduce import ReproduceRun, is_table3_alone
from flows.parameters.run_file import ParameterError
from lsap_core.errors import MissingWeightsError
from tasks.settings import Settings

EXAMPLES = Path(__file__).parents[3] / "examples"
SETTINGS = Settings()


def reproduction(**fields: Any) -> ReproduceRun:
    return ReproduceRun.of({"source": "a", "archive": "b", "output": "c/", "domain": "digits", **fields})


def digits() -> ReproduceRun:
    return ReproduceRun.read(str(EXAMPLES / "reproduce_digits.yaml"))


# --- examples -----------------------------------------------------------------------------------------


def test_the_digits_have_every_part_and_share_the_archive_of_the_demo():
    run = digits()
    assert run.chosen("all") == PARTS
    assert f"archive: {run.archive}\n" in (EXAMPLES / "digits.yaml").read_text()
    domain = run.resolved_domain(SETTINGS, PARTS)
    inversion = run.inversion_run(domain, run.inverted(PARTS)).resolve(SETTINGS)
    assert {method.name for method in inversion.methods} == set(run.methods)
    edits = run.edit_run(domain, run.edited(PARTS))
    assert set(edits.edits) == {"slant", "slant_equal", "stroke_width", "stroke_width_equal"}
    edits.resolve(SETTINGS)
    evaluation = run.evaluation_run(domain, run.measured(PARTS))
    assert len(evaluation.methods) == (len(run.methods) + len(run.refined)) * 5
    assert {name: edit["strength"] for name, edit in evaluation.lec.items()} == {
        name: edit.strength for name, edit in run.edits.items()
    }
    evaluation.resolve(SETTINGS)
    synthetic = run.synthetic_run(domain).resolve(SETTINGS).synthetic
    assert synthetic is not None and synthetic.count == 5000
    trained = run.table3_run(domain)
    assert (trained.output, trained.evaluation_source) == ("archives/reproduce/table3", run.source)
    assert len(trained.resolve(SETTINGS)) == len(trained.sncd_weights) == 5


@pytest.mark.parametrize("name", ["face", "car", "church", "wild"])
def test_a_preset_runs_once_its_published_files_are_there_and_names_them_all_until_then(name: str, tmp_path: Path):
    run = ReproduceRun.read(str(EXAMPLES / f"reproduce_{name}.yaml"))
    parts = run.chosen("all")
    settings = Settings(backbones=tmp_path)
    with pytest.raises(MissingWeightsError) as caught:
        run.resolved_domain(settings, parts)
    wanted = {file.file for file in load_domain(name).weights.values()}

    def named() -> set[str]:
        return {file for file in wanted if f" {file} (" in str(caught.value)}

    assert len(named()) >= 5
    known = {file.file for file in load_domain(name).weights.values() if file.sha256} & named()
    directions = {file.file for role, file in load_domain(name).weights.items() if role.startswith("direction ")}
    for file in named() - (known & directions):  # other directions than the published ones are refused before
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(MissingWeightsError, match="which has SHA-256 e3b0c44298fc1c14") as caught:
        run.resolved_domain(settings, parts)
    assert named() == known >= {"vgg16-397923af.pth", "alexnet-owt-7be5be79.pth"}


def test_the_examples_of_the_paper_leave_table_4_to_the_domains_that_it_is_about():
    parts = {
        name: ReproduceRun.read(str(EXAMPLES / f"reproduce_{name}.yaml")).parts for name in ("face", "car", "wild")
    }
    assert "table4" not in parts["face"] and {"table1", "table2"} <= set(parts["face"])
    assert "table4" in parts["car"] and "table1" not in parts["wild"]


# --- parts --------------------------------------------------------------------------------------------


def test_a_part_makes_what_it_needs_and_no_more():
    run = digits().model_copy(update={"refined": ()})
    assert run.inverted(["table2"]) == run.edited(["table2"]) == run.measured(["table2"]) == ()
    assert run.inverted(["table4"]) == run.measured(["table4"]) == ("e4e", "lsap_e")
    assert run.edited(["table4", "figure4"]) == ()
    assert run.inverted(["figure4"]) == ("psp", "e4e", "lsap_e")
    assert run.edited(["figure5"]) == run.methods and run.measured(["figure5"]) == ()
    some = run.model_copy(update={"figure5": run.figure5.model_copy(update={"methods": ("e4e",)})})
    assert some.inverted(["figure5"]) == ("e4e",)


def test_an_edit_without_an_attribute_has_no_equal_effect():
    edits = {"slant": {"edit": {"direction": "slant"}, "strength": 3}}
    run = reproduction(edits=edits, methods=("e4e",))
    assert run.measured(["table1"]) == ("e4e", "e4e/slant")
    domain = run.resolved_domain(SETTINGS, ["table1"])
    assert run.edit_run(domain, ("e4e",)).edits == {"slant": {"direction": "slant", "strength": 3.0}}
    (shown,) = run.shown_edits()
    assert (shown.equal, shown.compared, shown.unit) == (None, "slant", "")


def test_one_part_is_chosen_even_where_all_leaves_it_out():
    run = reproduction(parts=("table4",))
    assert run.chosen("all") == ("table4",)
    assert run.chosen("figure4") == ("figure4",)
    with pytest.raises(ParameterError, match="table3: not in this file"):
        run.chosen("table3")
    assert reproduction().chosen("all") == tuple(part for part in PARTS if part not in ("table3", "figure3"))
    with pytest.raises(ParameterError, match=r"figure3: nothing is refined .* refined: \[e4e/hfgi\]"):
        reproduction().chosen("figure3")


def test_refined_rows_stand_behind_those_of_embeddings_and_need_runs_of_their_own():
    run = reproduction(
        methods=("psp", "e4e"),
        refined=("e4e/hfgi", "lsap_e/hfgi", "lsap_e/pti", "e4e/mild"),
        refinement={"variants": {"mild": {"refiner": "pti"}}, "refiner_settings": {"mild": {"num_steps": 5}}},
        refiner_networks={"hfgi": "mine"},
        edits={"slant": {"edit": {"direction": "slant"}, "strength": 3}},
    )
    refined = ("e4e/hfgi", "lsap_e/hfgi", "lsap_e/pti", "e4e/mild")
    assert run.rows("table1") == ("psp", "e4e", *refined)
    assert run.rows("table4") == ("e4e", "lsap_e", *refined)
    assert run.rows("figure3") == ("e4e", "e4e/hfgi", "e4e/mild", "lsap_e", "lsap_e/hfgi", "lsap_e/pti")
    assert run.rows("figure5") == ("psp", "e4e")
    assert run.refinements(["figure5", "table2"]) == () and run.refinements(["figure3"])[0] == "e4e/hfgi"
    assert run.inverted(["table1"]) == ("psp", "e4e", "lsap_e")  # LSAP_E is refined, and no row of its own
    assert run.measured(["table1"]) == (*run.rows("table1"), *(f"{name}/slant" for name in run.rows("table1")))
    domain = run.resolved_domain(SETTINGS, ["table1"])
    runs = run.refinement_runs(domain, run.refinements(["table1"]))
    assert [(one.methods, one.refiners) for one in runs] == [
        (("e4e", "lsap_e"), ("hfgi",)),
        (("lsap_e",), ("pti",)),
        (("e4e",), ("mild",)),
    ]
    last = runs[-1].resolve(SETTINGS).refiners[0]
    assert (last.name, last.settings.kind, last.settings.num_steps) == ("mild", "pti", 5)
    assert "mine" in runs[0].resolve(SETTINGS).refiner_networks.values()
    assert run.edit_run(domain, run.edited(["table1"])).resolve(SETTINGS).refiners["hfgi"] == "mine"


def test_released_networks_of_refiners_are_named_with_the_other_files_unless_the_run_has_its_own(tmp_path: Path):
    settings = Settings(backbones=tmp_path)

    def missing(name: str, **changes: Any) -> str:
        run = ReproduceRun.read(str(EXAMPLES / f"reproduce_{name}.yaml")).model_copy(update=changes)
        with pytest.raises(MissingWeightsError) as caught:
            run.resolved_domain(settings, run.chosen("all"))
        return str(caught.value)

    told = missing("face")
    assert "(refiner e4e/hfgi)" in told and "(refiner lsap_e/hfgi)" in told and "(refiner sam)" in told
    assert "79999_iter.pth (face parser)" in told
    told = missing("face", refiner_networks={"hfgi": "mine.pt"}, refinement={"segmenter": "superpixels"})
    assert "hfgi" not in told and "face parser" not in told
    assert "refiner" not in missing("face", refined=())
    assert "(refiner sam)" in missing("car")


def test_encoders_of_ones_own_need_no_published_file(tmp_path: Path):
    own = {"e4e": "mine.pt", "lsap_e": "mine too.pt"}
    run = ReproduceRun.read(str(EXAMPLES / "reproduce_church.yaml")).model_copy(update={"encoders": own})
    with pytest.raises(MissingWeightsError) as caught:
        run.resolved_domain(Settings(backbones=tmp_path), ["table4"])
    assert "generator" in str(caught.value) and "e4e" not in str(caught.value)


def test_labels_and_heads_reach_every_flow_below(tmp_path: Path):
    heads, encoders = {"mine": "offsets"}, {"mine": "mine.pt"}
    run = reproduction(label=2, heads=heads, encoders=encoders, methods=["lsap_o_w", "mine"], compared=["lsap_e"])
    run = run.model_copy(update={"table3": {"source": "digits:train"}})
    domain = run.resolved_domain(SETTINGS, ("table1",)).with_encoders(encoders)
    flows = {
        "inversion": run.inversion_run(domain, ("lsap_o_w", "mine")),
        "evaluation": run.evaluation_run(domain, ("mine",)),
        "synthetic": run.synthetic_run(domain),
    }
    for name, flow in flows.items():
        request = flow.resolve(SETTINGS)
        assert (request.generator.label, dict(request.heads)) == (2, heads), name
    (refinement,) = run.refinement_runs(domain, ["mine/pti"])
    assert refinement.resolve(SETTINGS).generator.label == 2
    trained = run.table3_run(domain)
    assert (trained.label, trained.inversion().label) == (2, 2)
    assert {training.label for training in trained.trainings().values()} == {2}


def test_a_file_of_trainings_alone_is_told_from_a_whole_reproduction(tmp_path: Path):
    assert is_table3_alone(str(EXAMPLES / "table3_digits.yaml"))
    assert not is_table3_alone(str(EXAMPLES / "reproduce_digits.yaml"))
    with pytest.raises(ParameterError, match="does not exist"):
        is_table3_alone(str(tmp_path / "missing.yaml"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"edits": {"a": {"edit": {"direction": "slant"}, "strength": 1, "attribute": "age"}}}, "edits.a.attribute"),
        ({"inversion": {"colour": 1}}, "inversion: .*colour"),
        ({"table3": {"colour": 1}}, "table3: .*colour"),
        ({"edits": {"a/b": {"edit": {"direction": "slant"}, "strength": 1}}}, "edits"),
        ({"methods": ("hfgi",)}, 'methods.*"hfgi" is not known'),
        ({"refined": ("hfgi",)}, 'refined.*"hfgi" is no refined method; wanted .* such as e4e/hfgi'),
        ({"refined": ("e4e/pti", "e4e/pti")}, "refined.* names a refined method twice"),
        ({"refined": ("e4e/invented",)}, r'refinement: refiners\[invented\]: .*"invented" is not known'),
        ({"refined": ("e4e/pti",), "refinement": {"colour": 1}}, "refinement: .*colour"),
        ({"refined": ("e4e/pti",), "refinement": {"keep": "nothing"}}, r"refinement\.keep: nothing; .* wanted state"),
        ({"refined": ("e4e/pti",), "refinement": {"refiner_settings": {"sam": {}}}}, '"sam" is not among the refiners'),
    ],
)
def test_what_cannot_be_run_is_refused_by_its_field(fields: dict[str, Any], message: str):
    with pytest.raises(ParameterError, match=message):
        run = reproduction(**fields)
        run.shown_edits()
        domain = run.resolved_domain(SETTINGS, run.chosen("all"))
        run.inversion_run(domain, run.inverted(["table1"])).resolve(SETTINGS)
        if run.table3 is not None:
            run.table3_run(domain)
        run.edit_run(domain, ("e4e",)).resolve(SETTINGS)
