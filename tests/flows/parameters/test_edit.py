"""Edits and evaluations as they are asked for: completed by their domain, refused by field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.commands.cli import main
from flows.parameters.edit import EditRun
from flows.parameters.evaluate import EvaluateRun
from flows.parameters.run_file import ParameterError
from lsap_core.inversion.by_encoder import EncoderSettings
from tasks.settings import Settings

ROOT = Path(__file__).parents[3]
SLANT = {"direction": "slant", "strength": 3}
EDITS: dict[str, Any] = {"archive": "a", "domain": "digits", "edits": {"slant": SLANT}}
EVALUATION: dict[str, Any] = {"archive": "a", "domain": "digits"}


def unresolved(kind: type[EditRun] | type[EvaluateRun], **values: Any) -> str:
    shared = EDITS if kind is EditRun else EVALUATION
    with pytest.raises(ParameterError) as caught:
        kind(**{**shared, **values}).resolve(Settings())
    return str(caught.value)


def test_an_editing_run_takes_what_is_open_from_its_domain(tmp_path: Path) -> None:
    path = tmp_path / "edits.yaml"
    path.write_text(yaml.safe_dump(EDITS))
    request = EditRun.read(str(path), ["methods=[e4e]", "edits.slant.strength=2"]).resolve(Settings())
    assert request.generator.place.endswith("domains/digits/generator.safetensors")
    assert (request.methods, request.edits["slant"].strength, request.batch_size) == (("e4e",), 2.0, 32)
    assert not request.keep_images and request.calibration.num_images == 64


def test_images_of_a_report_are_a_number_or_ids(tmp_path: Path) -> None:
    path = tmp_path / "edits.yaml"
    path.write_text(yaml.safe_dump(EDITS))
    shown = [EditRun.read(str(path), [f"report_images={told}"]).report_images for told in ("0", "3", "[a/b, c]")]
    assert shown == [0, 3, ("a/b", "c")]
    for told in ("-1", "true", "a", "[1]"):
        with pytest.raises(ParameterError, match="wanted how many images, 0 to 10,000, or a list of image ids"):
            EditRun.read(str(path), [f"report_images={told}"])


def test_an_evaluation_takes_networks_and_attributes_from_its_domain(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.yaml"
    path.write_text(yaml.safe_dump(EVALUATION))
    request = EvaluateRun.read(str(path)).resolve(Settings())
    assert request.networks.lpips == request.networks.identity == ("digits-features", "digits-judge")
    assert request.networks.judge == "digits-judge" and request.attributes == ("slant", "stroke_width")
    assert request.synthetic is None and request.source is None
    chosen = ["lpips=[]", "identity=[digits-judge]", "classifier=none", "attributes=[slant]"]
    request = EvaluateRun.read(str(path), chosen).resolve(Settings())
    assert (request.networks.lpips, request.networks.identity) == ((), ("digits-judge",))
    assert request.networks.judge is None and request.attributes == ("slant",)


def test_synthetic_images_are_for_encoders() -> None:
    run = EvaluateRun(**EVALUATION, methods=("psp", "e4e"), synthetic={"count": 8})
    synthetic = run.resolve(Settings()).synthetic
    assert synthetic is not None and (synthetic.count, synthetic.psi, synthetic.seed) == (8, 1.0, 0)
    assert synthetic.encoders == {"psp": EncoderSettings(), "e4e": EncoderSettings()}


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (EditRun, {"edits": {}}, "edits: none given; wanted names and edits"),
        (EditRun, {"archive": "memory://a"}, "archive: memory://a lives in one process"),
        (EditRun, {"domain": "full_scale"}, 'generator: domain "full_scale" has no weights of its own'),
        (EditRun, {"methods": ("e4e", "e4e")}, "methods: e4e, e4e names a method twice"),
        (EditRun, {"edits": {"s": {"direction": "slant"}}}, 'edits.s: edit "s": it has both strength and equal_effect'),
        (EditRun, {"edits": {"a/b": SLANT}}, "edits.a/b: edit 'a/b' has no usable name"),
        (EditRun, {"edits": {"s": {"direction": "smile", "strength": 1}}}, 'direction "smile" is not known'),
        (EvaluateRun, {"lec": {"s": {**SLANT, "size": 3}}}, 'lec.s: edit "s": there is no key size'),
        (EvaluateRun, {"frechet": "digits-judge"}, "frechet: it compares with the originals; name their source"),
        (EvaluateRun, {"lpips": ("vgg",)}, 'networks: lpips "vgg" is not known'),
        (EvaluateRun, {"synthetic": {"count": 8}}, "methods: none given; wanted encoders: psp, e4e, lsap_e"),
        (
            EvaluateRun,
            {"synthetic": {"count": 8}, "methods": ("lsap_o_w",)},
            "methods[lsap_o_w]: only an encoder can be asked for codes of synthetic images",
        ),
        (
            EvaluateRun,
            {"synthetic": {"count": 8}, "methods": ("e4e",), "source": "digits:test"},
            "source: synthetic images have only codes to compare; leave it out",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_by_its_field(
    kind: type[EditRun] | type[EvaluateRun], values: dict[str, Any], message: str
) -> None:
    assert message in unresolved(kind, **values)


@pytest.mark.parametrize("flow", ["edit", "evaluate"])
def test_commands_refuse_an_archive_that_is_not_there(
    flow: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**(EDITS if flow == "edit" else EVALUATION), "archive": str(tmp_path / "none")}))
    assert main(["run", flow, str(path)]) == main(["run", flow, str(path), "--dry-run"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("is not an archive (it has no archive.json)") == 2
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["edit_digits", "evaluate_digits"])
def test_the_examples_are_complete(name: str) -> None:
    path = str(ROOT / "examples" / f"{name}.yaml")
    run = EditRun.read(path) if name == "edit_digits" else EvaluateRun.read(path)
    assert run.resolve(Settings()).archive == "archives/digits" and run.domain == "digits"
