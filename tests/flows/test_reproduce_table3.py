"""Table 3 from one command: which trainings it takes, what is refused, and a small run of the whole way."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows import reproduce_table3
from flows.parameters.reproduce_table3 import ReproduceTable3
from flows.parameters.run_file import ParameterError
from flows.running.outcome import UnfinishedError
from lsap_archive import open_archive
from tasks.settings import Settings

EXAMPLE = Path(__file__).parents[2] / "examples" / "table3_digits.yaml"
SMALL = """\
source: digits:train[:40]
validation_source: digits:test[:4]
evaluation_source: digits:test[4:8]
validation_images: 4
domain: digits
encoders: [psp, lsap_e]
sncd_weights: [0.5]
seeds: [3]
training: {batch_size: 4, num_steps: 2, decay_steps: 1}
training_run: {anchor: {num_samples: 200}, sheet_images: 0}
parallel: 2
workers: {count: 1, device: cpu}
"""


def reproduction(**fields: Any) -> ReproduceTable3:
    return ReproduceTable3(
        **{"source": "a", "evaluation_source": "b", "output": "out/", "domain": "digits", "seeds": (0, 1), **fields}
    )


def test_a_variant_of_both_tables_is_trained_once_and_the_published_encoders_come_first():
    run = reproduction(sncd_weights=(0.5, 0), sweep_seeds=(1,))

    assert list(run.trainings()) == [
        *("psp-seed0", "e4e-seed0", "lsap_e-0.5-seed0"),
        *("psp-seed1", "e4e-seed1", "lsap_e-0.5-seed1"),
        "lsap_e-0-seed1",
    ]


def test_encoders_differ_by_method_weight_and_seed_alone_and_are_inverted_from_where_they_were_trained():
    run = reproduction(sncd_weights=(0.25,), training={"num_steps": 7, "decay_steps": 3})
    resolved = run.resolve(Settings())

    swept = resolved["lsap_e-0.25-seed1"].spec
    assert (swept.method.name, swept.method.settings.sncd_weight, swept.seed) == ("lsap_e", 0.25, 1)
    assert {training.spec.method.settings.num_steps for training in resolved.values()} == {7}
    assert resolved["psp-seed0"].spec.method.settings.sncd_weight == 0
    inversion = run.inversion()
    assert inversion.encoders["psp-seed0"] == f"{resolved['psp-seed0'].spec.output}/encoder.safetensors"
    assert inversion.methods == tuple(resolved)


def test_the_example_is_the_whole_comparison():
    run = ReproduceTable3.read(str(EXAMPLE))

    assert len(run.trainings()) == 3 * (2 + 6)  # pSp, e4e, and LSAP_E with six weights, of which one is the published


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoders": ("psp", "stylespace")}, 'encoders: "stylespace" is not known; wanted some of psp, e4e, lsap_e'),
        ({"seeds": (1, 1)}, "seeds: 1, 1 has something twice"),
        ({"encoders": (), "sncd_weights": ()}, "encoders and sncd_weights are both empty"),
        ({"training_run": {"colour": "red"}}, "training_run: .*colour"),
        ({"training": {"sharpness": 1}}, "training: .*sharpness"),
    ],
)
def test_what_cannot_be_run_is_refused_by_its_field(fields, message):
    with pytest.raises(ParameterError, match=message):
        reproduction(**fields).resolve(Settings())


@dataclass
class Ended:
    """A training that has ended, as `train.submit` tells it."""

    outcome: int | Exception

    def result(self, raise_on_failure: bool) -> int | Exception:
        assert not raise_on_failure
        return self.outcome


def test_a_training_that_fails_stops_no_other_and_is_told_at_the_end(monkeypatch: pytest.MonkeyPatch):
    begun: list[str] = []

    def submit(name: str, resolved: object) -> Ended:
        begun.append(name)
        return Ended(ValueError("the disk is full") if name == "e4e-seed0" else 0)

    monkeypatch.setattr(reproduce_table3.train, "submit", submit)
    monkeypatch.setattr(reproduce_table3, "as_completed", iter)
    run = reproduction(sncd_weights=(), parallel=2)
    with pytest.raises(
        UnfinishedError, match=r"1 of 6 trainings could not be finished \(the disk is full\); the others are kept"
    ):
        reproduce_table3.train_all(run, run.resolve(Settings()))
    assert begun == list(run.trainings())

    monkeypatch.setattr(reproduce_table3.train, "submit", lambda name, resolved: Ended(6000))
    reproduce_table3.train_all(run, run.resolve(Settings()))


@pytest.mark.ray
@pytest.mark.slow
def test_one_command_trains_inverts_and_compares_and_again_finds_nothing_to_do(
    lsap_on_cluster: Any, tmp_path: Path
) -> None:
    config = tmp_path / "table3.yaml"
    config.write_text(SMALL)
    command = ("run", "reproduce", "table3", str(config), "--set", f"output={tmp_path / 'out'}", "--json")

    first = lsap_on_cluster(*command)
    assert first.code == 0, first.err
    report = json.loads(first.out)

    archive = open_archive(report["archive"])
    rows = archive.sql("select method, count(*) as n from rows where status = 'ok' group by method").to_pylist()
    assert {row["method"]: row["n"] for row in rows} == {"psp-seed3": 4, "lsap_e-0.5-seed3": 4}
    (table,) = (url for url in report["tables"] if url.endswith(".parquet"))
    encoders = {row["encoder"]: row for row in pq.read_table(io.BytesIO(Path(table).read_bytes())).to_pylist()}
    measured = archive.sql("select avg(lpips) as lpips from rows where method = 'psp-seed3'").to_pylist()[0]["lpips"]
    assert encoders["psp-seed3"]["lpips"] == pytest.approx(measured, rel=1e-5)
    assert f"| pSp | 4 | {encoders['psp-seed3']['mse']:.4f} |" in report["table"]
    assert re.search("synthetic, psi = 1 0[.]1", report["table"])

    again = lsap_on_cluster(*command)
    assert again.code == 0, again.err
    assert again.err.count("is finished") == 2
    assert json.loads(again.out)["table"] == report["table"]
