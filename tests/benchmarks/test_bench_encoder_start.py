"""The benchmark of encoder starts at hardly any size: its line holds every start and length, and the ratios."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from domains.domain import load_domain
from lsap_core.encoders import Encoder, EncoderConfig
from tasks.weights.encoders import encode_encoder, load_encoder
from tasks.weights.generators import load_generator

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "bench_encoder_start.py"


@pytest.mark.slow
def test_both_starts_are_measured_in_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load_generator(str(load_domain("digits").generator))
    torch.manual_seed(0)
    sizes = EncoderConfig.for_generator(loaded.config, heads="offsets", backbone="small")
    encoder, output = tmp_path / "e.safetensors", tmp_path / "new" / "e.jsonl"
    encoder.write_bytes(encode_encoder(Encoder(sizes), generator_digest=loaded.digest))
    options = ["--num-images=2", "--repeats=2", "--anchor-samples=16", f"--encoder={encoder}", f"--output={output}"]
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))
    monkeypatch.setattr(sys, "argv", [str(BENCHMARK), "--device=cpu", *options, "--steps", "2", "1", "--lpips=1e9"])
    runpy.run_path(str(BENCHMARK), run_name="__main__")
    (line,) = map(json.loads, output.read_text().splitlines())
    assert (line["benchmark"], line["encoder"]["digest"], line["threads"], line["repeats"]) == (
        "encoder_start",
        load_encoder(str(encoder)).digest,
        1,
        2,
    )
    runs = {(each["start"], each["num_steps"]): each for each in line["runs"]}
    starts = ["mean", "mean, no exploration", "encoder"]
    assert list(runs) == [("encoder", 0), *((start, count) for count in (1, 2) for start in starts)]
    for each in runs.values():
        assert 0 < each["min_seconds_per_image"] <= each["seconds_per_image"] <= each["max_seconds_per_image"]
        assert each["lpips"] > 0 and each["sncd"] > 0
    assert line["targets"]["lpips"] == 1e9
    assert line["targets"]["sncd"] == pytest.approx(1.02 * runs["mean", 2]["sncd"])
    times = line["time_to"]
    assert list(times) == ["lpips", "sncd", "lpips and sncd"]
    seconds, ratio = times["lpips"]["seconds"], times["lpips"]["ratio"]
    assert seconds["encoder"] == runs["encoder", 0]["seconds_per_image"]  # everything is below 1e9
    assert ratio == {start: seconds[start] / seconds["encoder"] for start in starts}
    assert line["settings"]["encoder"]["start"] == "encoder"
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(runs) + len(times)


def test_a_domain_without_the_encoder_says_what_to_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("{name: own, description: of this test, perceptual: digits-features}")
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))
    monkeypatch.setattr(sys, "argv", [str(BENCHMARK), "--device=cpu", f"--domain={path}"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCHMARK), run_name="__main__")
    assert ended.value.code == 2
    assert "name a file with --encoder" in capsys.readouterr().err
