"""`lsap archive explore`: an archive as a page, with sliders where its generator is at hand, until Ctrl-C."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.commands import explored
from flows.commands.cli import main
from flows.commands.parser import command_parser
from lsap_archive import ArchiveWriter, Geometry, open_archive
from lsap_core.editing import along
from lsap_core.images import to_uint8
from tasks.archived.rendering import Renderer, Stored
from tasks.weights.directions import load_direction
from tasks.weights.generators import LoadedGenerator

SLANT = "domains/digits/directions/slant.safetensors"


def opened(*words: str) -> Any:
    """What makes the pictures of the sliders of a command, without its page."""
    parsed = command_parser().parse_args(["archive", "explore", *words])
    return explored.live_edits(open_archive(parsed.url), parsed)


def test_a_page_is_served_with_live_pictures_until_ctrl_c(two_digits: str, digits: LoadedGenerator) -> None:
    """The digits are known by the digest of their generator: no word but the archive is needed."""
    command = [sys.executable, "-m", "flows.commands.cli", "archive", "explore", two_digits, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address, said, place = process.stdout.readline().strip().partition(" shows ")
            assert address.startswith("http://127.0.0.1:") and said and Path(place) == Path(two_digits)
            with urllib.request.urlopen(address, timeout=30) as page:
                assert page.status == 200 and "default-src 'self'" in page.headers["Content-Security-Policy"]
            with pytest.raises(urllib.error.HTTPError, match="421"):
                urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "rebound.example"}), timeout=30)
            live = f"{address}live?image=anna&method=e4e&strength=slant~2"
            with urllib.request.urlopen(live, timeout=30) as answer:
                shown = np.asarray(Image.open(io.BytesIO(answer.read())))
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, rest, errors) == (0, "", "lsap: the page is closed\n")
    stored = Stored.of_images(Renderer(digits.generator), open_archive(two_digits), ["anna"], "e4e")
    slant = load_direction(SLANT, config=digits.config, generator_digest=digits.digest)
    wanted = to_uint8(stored.edited(along(slant, 2.0)))[0]
    np.testing.assert_allclose(shown[..., 0].astype(int), wanted[..., 0], atol=1)


def test_sliders_are_those_of_the_domain_or_those_that_are_named(two_digits: str) -> None:
    assert [one.name for one in opened(two_digits).directions] == ["slant", "stroke_width"]
    named = opened(
        two_digits, "--domain", "digits", "--direction", "slant", SLANT, "--strength", "5", "--device", "cpu"
    )
    assert [(one.name, one.low, one.high) for one in named.directions] == [("slant", -5, 5), (SLANT, -5, 5)]
    assert opened(two_digits, "--generator", "domains/digits/generator.safetensors") is None, "it brings no directions"


def test_an_archive_of_an_unknown_generator_is_shown_without_sliders(
    digits: LoadedGenerator, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    geometry = Geometry(num_ws=digits.config.num_ws, w_dim=digits.config.w_dim, noise_sides=digits.config.noise_sizes)
    ArchiveWriter.open(url := str(tmp_path), generator_digest="4a" * 32, generator_name="ffhq.pkl", geometry=geometry)
    caplog.set_level("INFO", "lsap")
    assert opened(url) is None
    assert "name the archive's generator (ffhq.pkl): --domain NAME or --generator FILE" in caplog.text
    for words, told in (
        (("--direction", "slant"), "sliders are asked for, and nothing makes their pictures"),
        (("--domain", "digits"), "holds codes of generator 4a4a"),
        (("--host", "0.0.0.0"), "--token"),
    ):
        assert main(["archive", "explore", url, *words]) == 2
        shown = capsys.readouterr()
        assert told in shown.err and shown.out == ""


def test_a_direction_of_the_domain_that_is_not_there_is_left_out_and_a_named_one_refused(
    two_digits: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    domain = tmp_path / "mine.yaml"
    here = Path("domains/digits").resolve()
    directions = {"slant": str(here / "directions" / "slant.safetensors"), "smile": "nowhere/smile.pt"}
    document = {"name": "mine", "description": "d", "generator": str(here / "generator.safetensors")}
    networks = {
        "perceptual": "digits-features",
        "metric_perceptual": "digits-features",
        "shard_rows": 32,
        "batch_size": 4,
    }
    domain.write_text(json.dumps({**document, **networks, "directions": directions}))
    caplog.set_level("INFO", "lsap")
    assert [one.name for one in opened(two_digits, "--domain", str(domain)).directions] == ["slant"]
    assert "no slider for smile: " in caplog.text and "does not exist" in caplog.text
    assert main(["archive", "explore", two_digits, "--domain", str(domain), "--direction", "smile"]) == 2
    assert "smile.pt does not exist" in capsys.readouterr().err
    np.save(narrow := str(tmp_path / "narrow.npy"), np.ones(3, np.float32))
    assert main(["archive", "explore", two_digits, "--direction", narrow]) == 2
    assert f"--direction {narrow}: {narrow}" in (told := capsys.readouterr().err) and "wants width 64" in told
