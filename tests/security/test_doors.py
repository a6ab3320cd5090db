"""What YAML and the command line can say: read as a run, or refused in a sentence, whatever it is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domains.yaml_values import read_yaml
from flows.commands.cli import main
from flows.commands.exit_codes import is_wrong_request
from flows.parameters.edit import EditRun
from flows.parameters.evaluate import EvaluateRun
from flows.parameters.invert import InvertRun
from flows.parameters.reproduce import ReproduceRun
from flows.parameters.reproduce_editability import ReproduceEditability
from flows.parameters.reproduce_inheritance import ReproduceInheritance
from flows.parameters.reproduce_table3 import ReproduceTable3
from flows.parameters.run_file import Parameters
from flows.parameters.train_encoder import TrainEncoderRun
from flows.parameters.train_refiner import TrainRefinerRun
from lsap_archive import Secrets
from lsap_core.errors import ConfigError
from tasks.settings import Settings

ONCE = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))

RUNS: dict[type[Parameters], dict[str, Any]] = {
    InvertRun: {"source": "digits:test", "archive": "a", "domain": "digits", "methods": ["lsap_o_w_plus"]},
    EditRun: {"archive": "a", "domain": "digits", "edits": {"slant": {"direction": "slant", "strength": 3}}},
    EvaluateRun: {"archive": "a", "domain": "digits", "synthetic": {"count": 4}, "methods": ["lsap_e"]},
    TrainEncoderRun: {"source": "digits:train", "output": "o", "domain": "digits", "backbone": "small"},
    TrainRefinerRun: {"source": "digits:train", "output": "o", "domain": "digits", "encoder": "lsap_e"},
    ReproduceRun: {
        "source": "digits:test",
        "archive": "a",
        "output": "o",
        "domain": "digits",
        "edits": {"slant": {"edit": {"direction": "slant"}, "strength": 3, "attribute": "slant"}},
    },
    ReproduceTable3: {"source": "digits:train", "evaluation_source": "digits:test", "output": "o", "domain": "digits"},
    ReproduceEditability: {
        "source": "digits:test",
        "output": "o",
        "domain": "digits",
        "methods": ["psp", "e4e", "lsap_o_w_plus"],
        "reference": "digits:train",
    },
    ReproduceInheritance: {
        "source": "digits:test",
        "output": "o",
        "domain": "digits",
        "methods": ["e4e"],
        "refiners": ["hfgi", "pti"],
        "reference": "digits:train",
    },
}
NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2, 17, 10**6, 2**31, 2**63, 2**64, -(2**63) - 1, 10**15, 10**30, 10**400]),
    st.sampled_from([0.5, -0.0, 1e300, -1e300, float("nan"), float("inf"), float("-inf")]),
)
TEXTS = st.one_of(
    st.sampled_from(["", "1", "1e300", "nan", "cuda:99", "meta", "/etc/passwd", "/dev/zero", "psp", "none", "\0", "{"]),
    st.sampled_from(["../..", "s3://user:secret@bucket/x", "memory://x", "http://", "\u202e", "\x1b[2J", "a" * 5000]),
)
KEYS = st.one_of(TEXTS, st.sampled_from(["num_steps", "count", "device", 1, True, None]))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS, st.dates()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=5,
)
INNER = {
    "workers": ["count", "min_count", "threads", "gpus_each", "device"],
    "anchor": ["num_samples", "seed", "style_set"],
    "embedding": ["num_steps", "record_every", "learning_rate", "lpips_weight", "space", "encoder"],
    "training": ["num_steps", "batch_size", "learning_rate", "pool_size", "accumulate", "heads", "progressive_start"],
    "synthetic": ["count", "psi", "seed"],
    "figure4": ["layer", "entries", "samples"],
    "figure5": ["images", "methods"],
    "edits": ["slant"],
    "method_settings": ["lsap_o_w_plus"],
    "variants": ["own"],
    "refiner_variants": ["own"],
    "inversion": ["seed", "shard_rows", "embedding"],
    "training_run": ["seed", "log_every", "workers"],
}


def fields(kind: type[Parameters]) -> Iterator[tuple[str, ...]]:
    for name in kind.model_fields:
        yield (name,)
        yield from ((name, inner) for inner in INNER.get(name, ()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("doors")


def resolve(run: Any) -> None:
    """What is done before anything costs."""
    here = Settings()
    if not isinstance(run, ReproduceRun):
        run.resolve(here)
        return
    parts = run.chosen("all")
    domain = run.resolved_domain(here, parts)
    run.shown_edits()
    run.inversion_run(domain, run.inverted(parts)).resolve(here)
    run.edit_run(domain, run.edited(parts)).resolve(here)
    run.evaluation_run(domain, run.measured(parts)).resolve(here)
    run.synthetic_run(domain).resolve(here)


@settings(ONCE, max_examples=200)
@given(data=st.data())
def test_a_field_of_a_run_is_taken_or_refused_in_a_short_sentence(folder: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(list(RUNS)))
    path = data.draw(st.sampled_from(list(fields(kind))))
    value = data.draw(VALUES)
    values = yaml.safe_load(yaml.safe_dump(RUNS[kind]))
    at = values
    for name in path[:-1]:
        at = at.setdefault(name, {})
    at[path[-1]] = value
    (folder / "run.yaml").write_bytes(yaml.safe_dump(values, allow_unicode=False).encode())
    began = time.monotonic()
    try:
        resolve(kind.read(str(folder / "run.yaml")))
    except Exception as error:
        assert is_wrong_request(error), repr(error)
        told = Secrets().hide(str(error))  # as every message of the command line
        assert "\n" not in told and len(told) < 3000 and "user:secret" not in told
    assert time.monotonic() - began < 20


MARKS = ["a", "1", "-", ": ", "\n", "  ", "&a ", "*a", "<<", "[", "]", "{", "}", ",", '"', "'", "|", "? ", "#", "---\n"]
TAGS = ["!!set ", "!!int ", "!!timestamp ", "!!bool ", "!!binary ", "\0", "é", "\t", ".inf", "2020-01-01", "%"]
YAML_TEXT = st.lists(st.sampled_from(MARKS + TAGS), max_size=25).map("".join)


@settings(ONCE, max_examples=200)
@given(text=YAML_TEXT)
def test_any_text_is_plain_values_or_no_yaml(text: str) -> None:
    try:
        values = read_yaml(text, "run.yaml")
    except ConfigError as refusal:
        assert str(refusal).startswith("run.yaml ") and "\n" not in str(refusal)
    else:
        assert values == values or "nan" in repr(values)


CONFIG = "domain: digits\nsource: digits:test[:4]\narchive: {folder}/archive\nmethods: [lsap_o_w_plus]\n"
WRONG = {
    "embedding.num_steps=1000000000000000": "num_steps is 1000000000000000",
    "embedding.num_steps=1e300": "num_steps is '1e300'",
    "embedding.num_steps=900000000": "num_steps is 900000000 and record_every is 5: a trace of 180000000 steps",
    "batch_size=1000000000000": "batch_size: 1000000000000 together take",
    "batch_size=2000000": "batch_size: 2000000 together take",
    "batch_size=true": "batch_size: True: value error, true and false are no numbers",
    "workers.device=/etc/passwd": "workers.device: '/etc/passwd' is no device",
    "workers.device=cuda:99": "workers.device: 'cuda:99' is no device of this machine",
    "workers.device=meta": "workers.device: 'meta' is no device",
    "workers.count=9000": "workers.count: 9000 processes take",
    "seed=18446744073709551616": "seed: 18446744073709551616",
    "anchor.num_samples=1000000000000000": "anchor.num_samples: 1000000000000000",
    "max_failed_share=.nan": "max_failed_share: nan",
    ".".join("a" * 1000) + "=1": "a field of 1000 parts",
    "seed=&a [*a]": "an alias stands for a value that contains the alias itself",
    'source="\\0"': "a NUL character",
    "domain=/dev/zero": "domain:",
    "domain=PIPE.yaml": "PIPE.yaml is no file",
    "source=PIPE": "PIPE is a pipe; wanted a file",
    "source=/dev/zero": "/dev/zero is a device; wanted a file",
    "generator=PIPE": "PIPE is a pipe; wanted a file",
}


@pytest.fixture
def run_file(tmp_path: Path) -> str:
    (tmp_path / "run.yaml").write_text(CONFIG.format(folder=tmp_path))
    return str(tmp_path / "run.yaml")


@pytest.mark.parametrize("change", list(WRONG))
def test_a_number_device_or_place_that_cannot_be_is_asked_wrongly(
    change: str, run_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LSAP_RAY_ADDRESS", raising=False)
    os.mkfifo("PIPE")
    os.mkfifo("PIPE.yaml")
    began = time.monotonic()
    assert main(["run", "invert", run_file, "--dry-run", "--set", change]) == 2
    assert time.monotonic() - began < 30  # a few where nobody else is at work
    told = capsys.readouterr().err.strip()
    assert WRONG[change] in told and "\n" not in told and len(told) < 800
    assert not (tmp_path / "archive").exists()


@pytest.mark.parametrize("flags", [["--samples", "0"], ["--seed", "-1"], ["--seed", "9" * 30], ["--batch-size", "1e9"]])
def test_a_flag_that_cannot_be_is_named(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["direction", "pca", "--domain", "digits", "--out", "x.safetensors"]
    assert main([*command, *flags]) == 2
    assert f"argument {flags[0]}: " in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--samples", "2000000000"], ["--batch-size", "1000000000"], ["--device", "meta"]])
def test_a_flag_that_no_machine_can_follow_is_asked_wrongly(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["direction", "pca", "--domain", "digits", "--out", str(tmp_path / "x.safetensors")]
    assert main([*command, *flags]) == 2
    assert flags[-1] in capsys.readouterr().err


def test_where_a_cluster_is_named_it_may_have_what_is_not_here(run_file: str) -> None:
    run = InvertRun.read(run_file, ["workers.device=cuda:1", "workers.count=500", "workers.gpus_each=1"])
    run.resolve(Settings(ray_address="10.0.0.1:6379"))
    with pytest.raises(ValueError, match="meta"):
        InvertRun.read(run_file, ["workers.device=meta"]).resolve(Settings(ray_address="10.0.0.1:6379"))
