"""The command line: what it refuses and how, what it tells, what it leaves alone. No server, no Ray."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import psutil
import pytest
import safetensors.torch
import torch
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from flows.commands.cli import main
from flows.parameters.invert import InvertRun
from lsap_archive import RunWriter
from lsap_core.encoders import Encoder, EncoderConfig
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator
from tasks.inversion.request import InversionRequest
from tasks.inversion.worker import EmbedWorker
from tasks.settings import Settings
from tasks.weights.encoders import encode_encoder
from tasks.weights.generators import load_generator, save_generator

DONE, FAILED, ASKED_WRONGLY = 0, 1, 2
SECRET = "wJalrXUtnFEMI-very-secret"
DIGITS_GENERATOR = "domains/digits/generator.safetensors"
MAX_SECONDS_OF_A_DEAD_STORE = 60.0  # most of it imports on a busy machine
PlanHere = Callable[..., tuple[Any, InversionRequest]]


@dataclass(frozen=True)
class Answer:
    """What a command gave back."""

    code: int
    out: str
    err: str

    @property
    def error_line(self) -> str:
        """The one line of stderr."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert self.out == ""
        return lines[0]


@pytest.fixture
def lsap_here(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs a command in this process."""

    def run(*arguments: Any) -> Answer:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return run


@pytest.fixture
def images(tmp_path: Path, save_digits: Callable[[Path, Iterable[int]], list[str]]) -> Path:
    save_digits(tmp_path / "images", range(4))
    return tmp_path / "images"


@pytest.fixture
def invert(lsap_here: Callable[..., Answer], config: Path, images: Path, tmp_path: Path) -> Callable[..., Answer]:
    """`run invert` of four digits into tmp_path/archive, with changes; `__` stands for a dot."""

    def run(*flags: str, **fields: Any) -> Answer:
        changes = {"source": images, "archive": tmp_path / "archive", **fields}
        sets = [x for name, value in changes.items() for x in ("--set", f"{name.replace('__', '.')}={value}")]
        return lsap_here("run", "invert", config, *sets, *flags)

    return run


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


# --- refused ------------------------------------------------------------------------------------------

WRONG = {
    "unknown field": ({"sorce": "x"}, ["sorce", "no such field"]),
    "wrong type": ({"workers__count": "many"}, ["workers.count", "'many'", "integer"]),
    "out of range": ({"max_failed_share": 1.5}, ["max_failed_share", "1.5", "less than or equal to 1"]),
    "unknown fit": ({"fit": "squeeze"}, ["fit", "'squeeze'", "'crop'"]),
    "no methods": ({"methods": "[]"}, ["methods", "stylegan2_w_plus"]),
    "unknown method": ({"methods": "[e5e]"}, ["methods[e5e]", '"e5e"', "lsap_o_w_plus"]),
    "a method twice": ({"methods": "[l2_w_plus, l2_w_plus]"}, ["methods", "twice"]),
    "unknown domain": ({"domain": "faces"}, ["domain", '"faces"', "digits", ".yaml"]),
    "missing domain file": ({"domain": "nowhere.yaml"}, ["domain", "nowhere.yaml"]),
    "unknown setting": ({"embedding__steps": 5}, ["'steps'", "num_steps"]),
    "a setting of another type": ({"embedding__num_steps": "few"}, ["num_steps", "'few'", "whole number"]),
    "a share of a step": ({"embedding__num_steps": 2.5}, ["num_steps", "2.5", "whole number"]),
    "a setting out of range": ({"embedding__num_steps": 0}, ["num_steps", "0", "at least 1"]),
    "a setting of an absent method": ({"method_settings__l2_w_plus__num_steps": 5}, ["method_settings", "l2_w_plus"]),
    "a shard that is no whole chunks": ({"shard_rows": 20}, ["shard_rows", "20", "multiple of 16"]),
    "a shard beyond all runs": ({"shard_rows": 16 * 10**30}, ["shard_rows", "less than or equal to 100000"]),
    "unknown network": ({"perceptual": "lpips-resnet"}, ["perceptual", '"lpips-resnet"', "lpips-vgg"]),
    "missing source": ({"source": "nowhere/images"}, ["nowhere/images", "folder"]),
    "source without images": ({"source": "EMPTY"}, ["EMPTY", "no image"]),
    "missing generator": ({"generator": "nowhere.pt"}, ["nowhere.pt", "does not exist"]),
    "generator that is none": ({"generator": "README"}, ["README", "no known file of weights"]),
    "archive with a password": ({"archive": "s3://user:secret@bucket/x"}, ["credentials"]),
    "archive of one process": ({"archive": "memory://x"}, ["memory://", "worker"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_is_one_sentence_and_writes_nothing(
    case: str, invert: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, words = WRONG[case]
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "README").write_text("weights are elsewhere")
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    answer = invert(**changes)
    assert answer.code == ASKED_WRONGLY, answer.err
    assert answer.error_line.startswith("lsap: ")
    assert "user:secret" not in answer.err
    for word in words:
        assert word in answer.error_line
    assert files(tmp_path) == before


def test_a_missing_trunk_of_lpips_is_named_with_its_place(
    invert: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSAP_BACKBONES", str(tmp_path / "backbones"))
    answer = invert(perceptual="lpips-vgg")
    assert answer.code == ASKED_WRONGLY
    for word in ("lpips-vgg", "vgg16-397923af.pth", str(tmp_path / "backbones"), "LSAP_BACKBONES"):
        assert word in answer.error_line
    assert not (tmp_path / "archive").exists()


@pytest.mark.parametrize(
    ("results", "code", "words"),
    [
        ("s3://user:hunter2@bucket/results", ASKED_WRONGLY, ["LSAP_RESULTS", "carries a password"]),
        ("s3://bucket/results?auth_key=17-hunter2", ASKED_WRONGLY, ["LSAP_RESULTS", "carries a signed query"]),
        ("https://host/results", ASKED_WRONGLY, ["LSAP_RESULTS", "https:// is not known", "s3://"]),
        ("README/results", ASKED_WRONGLY, ["cannot write", "README/results", "README: Not a directory"]),
    ],
)
def test_where_results_cannot_be_kept_no_work_is_begun(
    results: str,
    code: int,
    words: list[str],
    invert: Callable[..., Answer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "README").write_text("a file is in the way")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LSAP_RESULTS", results)
    before = files(tmp_path)
    answer = invert()
    assert answer.code == code, answer.err
    assert all(word in answer.error_line for word in words) and "hunter2" not in answer.err
    assert files(tmp_path) == before


def test_networks_that_do_not_fit_the_generator_are_refused(invert: Callable[..., Answer], tmp_path: Path) -> None:
    path = tmp_path / "colour.safetensors"
    save_generator(Generator(GeneratorConfig(32, (8, 8, 8, 8), w_dim=8, num_mapping_layers=2)), str(path))
    answer = invert(generator=path)
    assert answer.code == ASKED_WRONGLY
    for word in ("digits-", "1-channel", "3-channel", "choose an lpips network"):
        assert word in answer.error_line


def test_an_archive_of_another_generator_is_left_alone(
    invert: Callable[..., Answer], small_archive: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    loaded = load_generator(DIGITS_GENERATOR)
    other = Generator(loaded.config)
    save_generator(other, str(tmp_path / "other.safetensors"))
    digest = load_generator(str(tmp_path / "other.safetensors")).digest
    before = {path: path.read_bytes() for path in files(small_archive)}
    for flags in ((), ("--dry-run",)):
        answer = invert(*flags, archive=small_archive, generator=tmp_path / "other.safetensors")
        assert answer.code == ASKED_WRONGLY
        for word in (str(small_archive), loaded.digest, digest, "new archive"):
            assert word in answer.error_line
    assert {path: path.read_bytes() for path in files(small_archive)} == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("source: [", ["is not YAML"]),
        ("- a\n- b", ["holds a list"]),
        ("source: digits:test", ["archive: missing"]),
        ("source: a\narchive: b\nsorce: c", ["sorce: there is no such field"]),
        ("source: a\narchive: b\nworkers: {counts: 2}", ["workers.counts: there is no such field"]),
        ("\x80\x81", ["is not YAML"]),
    ],
)
def test_a_wrong_file_is_one_sentence(
    text: str, words: list[str], lsap_here: Callable[..., Answer], tmp_path: Path
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="latin-1")
    answer = lsap_here("run", "invert", path)
    assert answer.code == ASKED_WRONGLY
    for word in words:
        assert word in answer.error_line


@pytest.mark.parametrize(
    "words", [("run", "invert"), ("run", "in\nlsap: done"), ("generator", "describe", "a", "--b\nlsap: done\x1b[2J")]
)
def test_words_that_are_none_of_lsap_are_one_sentence_and_the_last_line(
    words: tuple[str, ...], lsap_here: Callable[..., Answer]
) -> None:
    answer = lsap_here(*words)
    assert (answer.code, answer.out) == (ASKED_WRONGLY, "")
    assert answer.err.startswith("usage: lsap") and "\x1b" not in answer.err
    (said,) = [line for line in answer.err.splitlines() if line.startswith("lsap: ")]
    assert answer.err.splitlines()[-1] == said and "--help" in said


def test_a_missing_file_is_one_sentence(lsap_here: Callable[..., Answer]) -> None:
    answer = lsap_here("run", "invert", "nowhere.yaml")
    assert answer.code == ASKED_WRONGLY
    assert "nowhere.yaml does not exist" in answer.error_line


def test_where_it_failed_is_shown_to_those_who_ask(lsap_here: Callable[..., Answer]) -> None:
    quiet = lsap_here("generator", "describe", "nowhere.pt")
    assert quiet.code == ASKED_WRONGLY and "nowhere.pt" in quiet.error_line
    told = lsap_here("generator", "describe", "nowhere.pt", "--debug")
    assert told.code == ASKED_WRONGLY and "Traceback (most recent call last):" in told.err
    assert told.err.splitlines()[-1] == quiet.error_line


def test_a_place_of_prefect_that_may_not_be_written_is_told_before_any_work(
    invert: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with temporary_settings({PREFECT_HOME: tmp_path / "file" / "home"}, restore_defaults={PREFECT_API_URL}):
        answer = invert(methods="[psp]")
    assert answer.code == ASKED_WRONGLY
    assert f"keeps its database in {tmp_path / 'file' / 'home'}" in answer.error_line
    assert "set PREFECT_HOME to a folder that may be written to" in answer.error_line


def test_an_error_that_nobody_catches_is_one_line(tmp_path: Path) -> None:
    """In a thread, or where an object is thrown away: Python would write tracebacks."""
    script = """
import sys, threading
from flows.commands.output import log_to_stderr

class Thing:
    def __del__(self):
        raise OSError("cannot\\nbe closed")

log_to_stderr(tracebacks="--debug" in sys.argv)
thing = Thing()
del thing
thread = threading.Thread(target=int, args=("x",), name="counter")
thread.start()
thread.join()
"""
    for flags, has_traceback in (([], False), (["--debug"], True)):
        ended = subprocess.run([sys.executable, "-c", script, *flags], capture_output=True, text=True, timeout=200)
        assert "OSError: cannot\\nbe closed" in ended.stderr
        assert "ERROR lsap: a thread (counter) failed: ValueError: invalid literal" in ended.stderr
        assert ("Traceback" in ended.stderr) is has_traceback and (has_traceback or ended.stderr.count("\n") == 2)


def test_a_library_that_cannot_be_loaded_is_one_sentence(tmp_path: Path) -> None:
    """As under a limit of memory, where NumPy tells a page of it."""
    (tmp_path / "duckdb.py").write_text('raise ImportError("IMPORTANT:\\n\\n_duckdb.so: failed to map segment\\n")')
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.getcwd()}"}
    command = [sys.executable, "-m", "flows.commands.cli", "generator", "describe", DIGITS_GENERATOR]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert (ended.returncode, ended.stdout) == (FAILED, "")
    told = "lsap: a library cannot be loaded (_duckdb.so: failed to map segment): allow the command more memory "
    assert ended.stderr.startswith(told) and ended.stderr.count("\n") == 1


def test_a_change_without_a_value_is_one_sentence(invert: Callable[..., Answer]) -> None:
    answer = invert("--set", "embedding.num_steps")
    assert answer.code == ASKED_WRONGLY
    assert "key=value" in answer.error_line


def test_numbers_may_be_written_as_yaml_does_not_read_them(config: Path, tmp_path: Path) -> None:
    """YAML 1.1 reads 1e5 as text; in a setting it is the number."""
    changes = ["source=digits:test", "archive=a", "embedding.noise_weight=1e5"]
    resolved = InvertRun.read(str(config), changes).resolve(Settings())
    assert [method.settings.noise_weight for method in resolved.methods] == [1e5, 1e5]


@pytest.mark.object_store
@pytest.mark.slow
def test_an_unreachable_store_is_one_sentence_soon(config: Path, closed_port: int) -> None:
    """A process from nothing, as from a shell."""
    environment = {
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "very-secret",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{closed_port}",
    }
    command = [sys.executable, "-m", "flows.commands.cli", "run", "invert", str(config)]
    command += ["--set", "source=digits:test[:4]", "--set", "archive=s3://lsap/nowhere"]
    started = time.monotonic()
    ended = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=200)
    seconds = time.monotonic() - started
    assert ended.returncode == FAILED, ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("lsap: ") and "s3://lsap/nowhere" in last and "does not answer" in last
    assert "very-secret" not in ended.stderr
    assert seconds < MAX_SECONDS_OF_A_DEAD_STORE


@pytest.mark.slow
def test_what_fails_inside_a_flow_ends_with_its_sentence_and_nothing_after_it(
    config: Path, images: Path, closed_port: int, tmp_path: Path
) -> None:
    """A process that has planned into an archive, and then finds no Ray; the leaks of DuckDB would come last."""
    command = [sys.executable, "-m", "flows.commands.cli", "run", "invert", str(config)]
    command += ["--set", f"source={images}", "--set", f"archive={tmp_path / 'archive'}", "--set", "methods=[psp]"]
    environment = {**os.environ, "LSAP_RAY_ADDRESS": f"127.0.0.1:{closed_port}"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == FAILED and ended.stdout == "", ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("lsap: ") and f"the Ray cluster at 127.0.0.1:{closed_port} cannot be joined" in last
    assert not any(noise in ended.stderr for noise in ("Traceback", "nanobind", "Exception ignored"))


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A bucket that may be read and not written; gives the requests that it was asked."""
    asked: list[str] = []

    class Refusing(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            asked.append(f"{self.command} {self.path}")
            body = b"<Error><Code>AccessDenied</Code></Error>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_GET = do_HEAD = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Keep the output of the tests quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", f"key-{server.server_port}")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        fsspec.filesystem("s3").clear_instance_cache()
        yield asked
        fsspec.filesystem("s3").clear_instance_cache()
        server.shutdown()


@pytest.mark.object_store
@pytest.mark.parametrize(
    ("verb", "file", "field"),
    [
        (("invert",), "digits", "archive"),
        (("edit",), "edit_digits", "archive"),
        (("evaluate",), "evaluate_digits", "archive"),
        (("train_encoder",), "train_digits", "output"),
        (("train_refiner",), "train_refiner_digits", "output"),
        (("reproduce", "all"), "reproduce_digits", "archive"),
        (("reproduce", "all"), "reproduce_digits", "output"),
        (("reproduce", "table3"), "table3_digits", "output"),
        (("reproduce", "editability"), "editability_digits", "output"),
        (("reproduce", "inheritance"), "inheritance_digits", "output"),
    ],
)
def test_a_place_that_may_not_be_written_is_told_before_any_work(
    lsap_here: Callable[..., Answer], refusing: list[str], verb: tuple[str, ...], file: str, field: str, tmp_path: Path
) -> None:
    places = {
        name: str(tmp_path / name) for name in ("archive", "output") if name != field and verb == ("reproduce", "all")
    }
    changes = [f"{name}={place}" for name, place in {**places, field: "s3://lsap/closed"}.items()]
    answer = lsap_here("run", *verb, f"examples/{file}.yaml", *(word for one in changes for word in ("--set", one)))
    assert answer.code == ASKED_WRONGLY
    assert "cannot write s3://lsap/closed/writable-" in answer.error_line
    assert "permission denied (AccessDenied); check the credentials" in answer.error_line and SECRET not in answer.err
    assert [one.partition("?")[0].rpartition("-")[0] for one in refusing] == ["PUT /lsap/closed/writable"], "asked once"


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_ended_early_takes_its_prefect_server_along(
    by: signal.Signals, config: Path, tmp_path: Path
) -> None:
    """While the temporary server is being started, which nobody else would ever end."""
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    command = [sys.executable, "-m", "flows.commands.cli", "run", "invert", str(config)]
    command += ["--set", "source=digits:test[:4]", "--set", f"archive={tmp_path / 'archive'}"]
    running = subprocess.Popen(
        command, env={**environment, "PREFECT_HOME": str(tmp_path)}, stderr=subprocess.PIPE, text=True
    )
    try:
        started: list[psutil.Process] = []
        while not started:
            assert running.poll() is None
            time.sleep(0.05)
            started = [one for one in psutil.Process(running.pid).children() if "uvicorn" in one.cmdline()]
        running.send_signal(by)
        _, err = running.communicate(timeout=60)
        if by == signal.SIGTERM:
            assert running.returncode == FAILED
            assert err.splitlines()[-1] == "lsap: interrupted; the same command goes on where this one stopped"
        assert psutil.wait_procs(started, timeout=20)[1] == []
    finally:
        running.kill()


# --- dry run ------------------------------------------------------------------------------------------


def test_a_dry_run_tells_the_work_and_writes_nothing(invert: Callable[..., Answer], tmp_path: Path) -> None:
    before = files(tmp_path)
    answer = invert("--dry-run", "--json", embedding__num_steps=2)
    assert answer.code == DONE, answer.err
    told = json.loads(answer.out)
    assert told["images in the source"] == 4
    assert told["images left by method"] == {"stylegan2_w_plus": 4, "lsap_o_w_plus": 4}
    assert told["shards left"] == 2
    config = load_generator(DIGITS_GENERATOR).config
    values = config.num_ws * config.w_dim + sum(height * width for height, width in config.noise_sizes)
    assert told["noise that is kept"] == {"stylegan2_w_plus": "float32", "lsap_o_w_plus": "float32"}
    trace = 2 * 6  # steps and terms
    assert told["archive bytes, before compression"] == 8 * 4 * (values + trace)
    assert told["archive bytes of previews, about"] == 8 * 2 * 358  # of picture and original
    smaller = json.loads(invert("--dry-run", "--json", embedding__num_steps=2, keep_noise="none").out)
    codes = config.num_ws * config.w_dim
    assert smaller["archive bytes, before compression"] == 8 * 4 * (codes + trace)
    assert told["device hours on this machine, one worker"] >= 0
    assert files(tmp_path) == before
    assert answer.err == ""


def test_a_dry_run_for_people_names_shards_bytes_and_hours(invert: Callable[..., Answer]) -> None:
    answer = invert("--dry-run", embedding__num_steps=2)
    assert answer.code == DONE, answer.err
    for word in ("shards left: 2", "archive bytes", "device hours"):
        assert word in answer.out


def test_a_dry_run_times_encoders_too_and_refuses_those_of_others(
    invert: Callable[..., Answer], tmp_path: Path
) -> None:
    loaded = load_generator(DIGITS_GENERATOR)
    sizes = EncoderConfig.for_generator(loaded.config, heads="offsets", backbone="small")
    torch.manual_seed(0)
    for name, digest in (("own", loaded.digest), ("other", "0" * 64)):
        (tmp_path / f"{name}.safetensors").write_bytes(encode_encoder(Encoder(sizes), generator_digest=digest))
    asked = {"methods": "[mine, lsap_o_w_plus_from_lsap_e]", "encoders__lsap_e": tmp_path / "own.safetensors"}
    answer = invert("--dry-run", "--json", **asked, encoders__mine=tmp_path / "own.safetensors")
    assert answer.code == DONE, answer.err
    told = json.loads(answer.out)
    assert told["images left by method"] == {"mine": 4, "lsap_o_w_plus_from_lsap_e": 4}
    codes, maps = (
        loaded.config.num_ws * loaded.config.w_dim,
        sum(height * width for height, width in loaded.config.noise_sizes),
    )
    trace = 9 * 6
    assert told["archive bytes, before compression"] == 4 * 4 * (codes + maps + trace) + 4 * 4 * codes
    for flags in ((), ("--dry-run",)):
        answer = invert(*flags, **asked, encoders__mine=tmp_path / "other.safetensors")
        assert answer.code == ASKED_WRONGLY
        assert "other.safetensors holds an encoder of generator 0000" in answer.error_line


def test_a_dry_run_counts_what_an_unfinished_run_still_lacks(
    invert: Callable[..., Answer], plan_here: PlanHere, images: Path, tmp_path: Path
) -> None:
    """Started and never embedded: all of it is left, though no new run is to be made."""
    prepared, _ = plan_here(source=images, archive=tmp_path / "archive", embedding__num_steps=2)
    before = files(tmp_path)
    answer = invert("--dry-run", "--json", embedding__num_steps=2)
    told = json.loads(answer.out)
    assert told["unfinished runs to resume"] == list(prepared.runs)
    assert told["shards left"] == 2
    assert told["images left by method"] == {"stylegan2_w_plus": 4, "lsap_o_w_plus": 4}
    assert files(tmp_path) == before


def test_a_dry_run_has_nothing_to_do_where_all_is_done(
    invert: Callable[..., Answer], small_archive: Path, small_source: Path
) -> None:
    answer = invert("--dry-run", "--json", source=small_source, archive=small_archive, embedding__num_steps=2)
    told = json.loads(answer.out)
    assert told["images left by method"] == {}
    assert told["shards left"] == 0


# --- archives -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_source(
    tmp_path_factory: pytest.TempPathFactory, save_digits: Callable[[Path, Iterable[int]], list[str]]
) -> Path:
    folder = tmp_path_factory.mktemp("small") / "images"
    save_digits(folder, range(4))
    return folder


@pytest.fixture(scope="module")
def small_archive(plan_here: PlanHere, small_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four digits by two methods, embedded in this process."""
    folder = tmp_path_factory.mktemp("small") / "archive"
    prepared, request = plan_here(source=small_source, archive=folder, embedding__num_steps=2)
    worker = EmbedWorker(request)
    for shard in prepared.shards:
        worker(shard)
    for run_id in prepared.runs:
        assert RunWriter.open(str(folder), run_id).publish({})
    return folder


def test_describe_tells_what_is_there(lsap_here: Callable[..., Answer], small_archive: Path) -> None:
    answer = lsap_here("archive", "describe", small_archive, "--json")
    assert (answer.code, answer.err) == (DONE, "")
    told = json.loads(answer.out)
    assert told["num_rows"] == 8
    assert told["methods"]["lsap_o_w_plus"]["ok"] == 4
    for_people = lsap_here("archive", "describe", small_archive)
    assert "num_rows: 8" in for_people.out


@pytest.mark.parametrize("verb", ["describe", "verify"])
def test_no_archive_is_one_sentence(verb: str, lsap_here: Callable[..., Answer], tmp_path: Path) -> None:
    answer = lsap_here("archive", verb, tmp_path)
    assert answer.code == ASKED_WRONGLY
    assert f"{tmp_path} is not an archive" in answer.error_line


def test_verify_names_the_object_of_which_a_byte_is_wrong(
    lsap_here: Callable[..., Answer], small_archive: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small_archive, copy)
    sound = lsap_here("archive", "verify", copy, "--json")
    assert (sound.code, sound.err) == (DONE, "")
    assert json.loads(sound.out)["problems"] == []
    victim = sorted(copy.glob("runs/lsap_o_w_plus-*/w_plus/c/0/0/0"))[0]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    key = str(victim.relative_to(copy))
    for flags in ((), ("--json",)):
        answer = lsap_here("archive", "verify", copy, *flags)
        assert answer.code == FAILED
        assert key in answer.out
    assert [problem["key"] for problem in json.loads(answer.out)["problems"]] == [key]


def test_a_run_under_way_is_given_up_and_no_other(
    lsap_here: Callable[..., Answer], plan_here: PlanHere, small_source: Path, small_archive: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small_archive, copy)
    prepared, _ = plan_here(source=small_source, archive=copy, embedding__num_steps=3)
    begun, other = prepared.runs
    (published, _) = sorted(path.name for path in copy.glob("runs/*") if (path / "_manifest.json").exists())
    refused = lsap_here("archive", "repair", copy, "--give-up", published)
    assert refused.code == ASKED_WRONGLY and "readers see it" in refused.error_line
    refused = lsap_here("archive", "repair", copy, "--give-up", "nobody")
    assert refused.code == ASKED_WRONGLY and "has no run or evaluation nobody: name one" in refused.error_line
    given_up = lsap_here("archive", "repair", copy, "--give-up", begun)
    assert (given_up.code, given_up.err) == (DONE, "") and f"given up: runs/{begun}" in given_up.out
    counts = json.loads(lsap_here("archive", "verify", copy, "--json").out)["counts"]
    assert (counts["published_runs"], counts["unfinished_runs"], counts["retired_runs"]) == (2, 1, 1)
    again, _ = plan_here(source=small_source, archive=copy, embedding__num_steps=3)
    assert other in again.runs and begun not in again.runs and len(again.runs) == 2


# --- generators ---------------------------------------------------------------------------------------


def test_a_generator_is_described_and_converted_both_ways(lsap_here: Callable[..., Answer], tmp_path: Path) -> None:
    described = lsap_here("generator", "describe", DIGITS_GENERATOR, "--json")
    assert (described.code, described.err) == (DONE, "")
    told = json.loads(described.out)
    assert (told["format"], told["resolution"], told["image_channels"]) == ("safetensors", 32, 1)
    as_pt, back = tmp_path / "digits.pt", tmp_path / "back.safetensors"
    converted = lsap_here("generator", "convert", DIGITS_GENERATOR, as_pt, "--json")
    assert json.loads(converted.out)["digest"] == told["digest"]
    assert json.loads(converted.out)["format"] == "rosinality"
    assert lsap_here("generator", "convert", as_pt, back).code == DONE
    one, other = (safetensors.torch.load_file(path) for path in (DIGITS_GENERATOR, back))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_existing_file_is_not_overwritten(lsap_here: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "mine.pt").write_bytes(b"mine")
    answer = lsap_here("generator", "convert", DIGITS_GENERATOR, tmp_path / "mine.pt")
    assert answer.code == ASKED_WRONGLY
    assert "exists already" in answer.error_line
    assert (tmp_path / "mine.pt").read_bytes() == b"mine"


@pytest.mark.parametrize("content", [None, b"", b"<!doctype html><html>", b"\x80\x04junk"])
def test_a_file_that_is_no_generator_is_one_sentence(
    content: bytes | None, lsap_here: Callable[..., Answer], tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    if content is not None:
        path.write_bytes(content)
    answer = lsap_here("generator", "describe", path)
    assert answer.code == ASKED_WRONGLY
    assert str(path) in answer.error_line
