"""Time, memory, environment and result lines: what the benchmarks that compare two forms of one thing share."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import math
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from random_generator import TABLES, has_resolution
from torch import Tensor

from lsap_core.generators import Modulation
from lsap_core.memory import keep_freed_memory, set_thresholds

FORMS: tuple[Modulation, Modulation] = ("activations", "weights")
MIN_SAMPLE_SECONDS = 0.05
GROWN_THRESHOLDS = 32 * 2**20, 64 * 2**20
"""What glibc's own come to in a process that frees large tensors, mmap and trim."""
REPOSITORY = Path(__file__).parents[1]

Work = Callable[[], Tensor]


class Cell(Protocol):
    """One row of a benchmark's table: a frozen dataclass of sizes."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def units(self) -> int:
        """Images, or image-steps, that one call of the work does."""


C = TypeVar("C", bound=Cell)


@dataclass(frozen=True)
class Benchmark(Generic[C]):
    """What is measured.

    Attributes:
        name: of the benchmark.
        per: what a unit is, "image" or "image-step".
        difference_of: what the work returns, to compare the two forms by.
        build: (cell, form, device) -> work; called in this process and, for memory, in a fresh one.
        smallest: a cell that does everything once at hardly any size.
        forms: ours, and what it is compared with.
        agreement: largest relative difference between what the two forms return in their first call; where it is
            larger, they do not do the same thing and nothing is timed. None only reports the difference.
        counts_state: whether memory is also what the work keeps from call to call, such as weights and their
            gradients; otherwise only what a call needs above that.
        is_rate: whether the table shows units per second instead of milliseconds.
    """

    name: str
    per: str
    difference_of: str
    build: Callable[[C, Any, torch.device], Work]
    smallest: C
    forms: tuple[str, str] = FORMS
    agreement: float | None = None
    counts_state: bool = False
    is_rate: bool = False


def shared_parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--repeats", type=int, default=5, help="samples of each form, taken alternately")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="file of JSON lines to append to; the screen when not given")
    parser.add_argument("--commit", help="what was measured, where the code lies outside git")
    return parser


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """The options of the benchmarks that go through generators of several sizes."""
    parser = shared_parser(description)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=["digits", "config_f"], help="channel tables")
    parser.add_argument("--resolutions", nargs="+", type=int, help="32 64 on a CPU, 32 64 256 on CUDA when not given")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8])
    return parser


def parse_shared(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, with the device decided and the threads set."""
    options = parser.parse_args(arguments)
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if min(options.repeats, options.threads) < 1:
        parser.error("--repeats and --threads must be at least 1")
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    return options


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The same of `argument_parser`, with the resolutions decided too."""
    options = parse_shared(parser, arguments)
    options.resolutions = options.resolutions or ([32, 64] if options.device == "cpu" else [32, 64, 256])
    if min(options.batch_sizes) < 1:
        parser.error("--batch-sizes must be at least 1")
    if not generators(options):
        parser.error(f"no table of {options.tables} has a resolution of {options.resolutions}; digits are 32 pixels")
    return options


def generators(options: argparse.Namespace) -> list[tuple[str, int]]:
    """The chosen (table, resolution) pairs."""
    return [(table, side) for table in options.tables for side in options.resolutions if has_resolution(table, side)]


def run(benchmark: Benchmark[C], cells: Sequence[C], options: argparse.Namespace) -> None:
    """Measure every cell: a row of the table and a JSON line, written as soon as the cell is done."""
    device = torch.device(options.device)
    surroundings = environment(device, options.commit)
    unit = f"{benchmark.per}s per second" if benchmark.is_rate else f"ms per {benchmark.per}"
    print(f"{benchmark.name} on {surroundings['device_name']}, {options.threads} thread(s); {unit}")
    widths = _widths(cells)
    print(_line([*asdict(cells[0]), *_columns(benchmark.forms)], widths), flush=True)
    lines: list[str] = []
    for cell in cells:
        result = {
            "benchmark": benchmark.name,
            **surroundings,
            "load_average": [round(load, 2) for load in os.getloadavg()],
            "sizes": asdict(cell),
            **compare(benchmark, cell, repeats=options.repeats, device=device),
        }
        print(_row(result, widths, is_rate=benchmark.is_rate), flush=True)
        lines.append(json.dumps(result))
        if options.output is not None:
            append(lines[-1], options.output)
    if options.output is None:
        print("\n".join(lines))


def append(line: str, output: Path | None) -> None:
    """Add a line of the results to the file, or show it where there is none."""
    if output is None:
        print(line)
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a") as file:
        print(line, file=file)


def compare(benchmark: Benchmark[C], cell: C, *, repeats: int, device: torch.device) -> dict[str, Any]:
    """Both forms side by side: seconds per unit, memory, the ratio second / first, and how far they differ.

    Samples alternate and change order (AB BA AB ...), so that what slows the machine down meets both forms.
    """
    forms = benchmark.forms
    memory = {form: peak_memory(benchmark, cell, form, device) for form in forms}
    works = {form: benchmark.build(cell, form, device) for form in forms}
    results = first_results(benchmark, cell, works)
    calls = {form: math.ceil(MIN_SAMPLE_SECONDS / _seconds(work, 1, device)) for form, work in works.items()}
    samples: dict[str, list[float]] = {form: [] for form in forms}
    for repeat in range(repeats):
        for form in forms if repeat % 2 == 0 else reversed(forms):
            samples[form].append(_seconds(works[form], calls[form], device) / cell.units)
    first, second = (samples[form] for form in forms)
    paired = [b / a for a, b in zip(first, second, strict=True)]
    return {
        "per": benchmark.per,
        "repeats": repeats,
        "clock": clock(device).__name__,
        "forms": {
            form: {
                "median_seconds": median(samples[form]),
                "min_seconds": min(samples[form]),
                "max_seconds": max(samples[form]),
                **memory[form],
            }
            for form in forms
        },
        "ratio": {
            "of_medians": median(second) / median(first),
            "paired_min": min(paired),
            "paired_median": median(paired),
            "paired_max": max(paired),
        },
        "difference_of": benchmark.difference_of,
        "max_abs_difference": (results[0] - results[1]).abs().max().item(),
        "max_abs_value": results[0].abs().max().item(),
    }


def first_results(benchmark: Benchmark[C], cell: C, works: dict[str, Work]) -> list[Tensor]:
    """What both forms return in their first call, which is also the first warm-up."""
    if benchmark.agreement is None:
        return [work() for work in works.values()]
    with exact_convolutions():
        results = [work() for work in works.values()]
    ours, other = results
    if not torch.allclose(ours, other, rtol=benchmark.agreement, atol=0.0):  # NaN is close to nothing
        raise SystemExit(
            f"{benchmark.name}: in {cell} the two forms do not compute the same thing, so nothing was timed; "
            f"{benchmark.difference_of}: {benchmark.forms[0]} {ours.tolist()}, {benchmark.forms[1]} {other.tolist()}; "
            f"wanted a relative difference of at most {benchmark.agreement:g}"
        )
    return results


@contextlib.contextmanager
def exact_convolutions() -> Iterator[None]:
    """Convolutions on CUDA without TF32, whose rounding would hide small mistakes."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextlib.contextmanager
def memory_given_back() -> Iterator[None]:
    """Memory goes back as glibc does it unasked, once its thresholds have grown; it is kept again afterwards."""
    kept = keep_freed_memory()
    if kept:
        set_thresholds(*GROWN_THRESHOLDS)
    try:
        yield
    finally:
        keep_freed_memory()


def peak_memory(benchmark: Benchmark[C], cell: C, form: str, device: torch.device) -> dict[str, int | str]:
    """Bytes that the work needs at its peak, above what was held before its call (with `counts_state`, before it was
    built).

    On a CPU the call runs in a process of its own, forked from a small server: a process started from this one would
    inherit the maximum of this one.
    """
    if device.type == "cuda":
        return _peak_memory_here(benchmark, cell, form, device)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo"])  # the second is imported by the first step of Adam
    with ProcessPoolExecutor(
        1, mp_context=context, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
    ) as pool:
        return pool.submit(_peak_memory_here, benchmark, cell, form, device).result()


def _peak_memory_here(benchmark: Benchmark[C], cell: C, form: str, device: torch.device) -> dict[str, int | str]:
    benchmark.build(benchmark.smallest, form, device)()  # what is paid once: libraries, imports, workspaces
    gc.collect()
    work = None if benchmark.counts_state else benchmark.build(cell, form, device)
    reset_peak(device)
    held = peak_bytes(device)
    if work is None:
        work = benchmark.build(cell, form, device)
    work()
    measure = "max_memory_allocated" if device.type == "cuda" else "ru_maxrss of a process"
    return {"peak_memory_bytes": peak_bytes(device) - held, "held_memory_bytes": held, "memory_measure": measure}


def reset_peak(device: torch.device) -> None:
    """Let the maximum start again from what is held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # what was freed must not be reused unseen
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """The most that was held since `reset_peak`; of a process on a CPU, of tensors on CUDA."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _seconds(work: Work, calls: int, device: torch.device) -> float:
    start = now(device)
    for _ in range(calls):
        work()
    return (now(device) - start) / calls


def now(device: torch.device) -> float:
    """Seconds on the clock of the device, when all that was asked of it is done."""
    synchronize(device)
    return clock(device)()


def clock(device: torch.device) -> Callable[[], float]:
    """One thread is measured by the processor time it had: what else runs on the machine then matters little."""
    is_one_thread = device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if is_one_thread else time.perf_counter


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def environment(device: torch.device, commit: str | None) -> dict[str, Any]:
    """What a number means nothing without: code, versions, machine."""
    cpu_model = _cpu_model()
    changes = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return {
        "commit": commit or _git("rev-parse", "--verify", "HEAD"),
        "dirty": None if changes is None else changes != "",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model,
        "cpu_model": cpu_model,
        "cpu_count": os.cpu_count(),
        "cudnn_tf32": torch.backends.cudnn.allow_tf32 if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
    }


def _git(*arguments: str) -> str | None:
    """What git says, or None outside a repository (and before its first commit)."""
    answer = subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True)
    return answer.stdout.strip() if answer.returncode == 0 else None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def _columns(forms: tuple[str, str]) -> list[str]:
    return [*forms, "ratio (paired)", *(f"MiB {form[:5]}" for form in forms), "max diff. / max"]


def _widths(cells: Sequence[Cell]) -> list[int]:
    rows = [asdict(cell) for cell in cells]
    return [max(len(name), 9, *(len(str(row[name])) for row in rows)) for name in rows[0]] + [24, 24, 18, 9, 9, 17]


def _row(line: dict[str, Any], widths: Sequence[int], *, is_rate: bool) -> str:
    forms, ratio = line["forms"].values(), line["ratio"]
    cells = [
        *(str(size) for size in line["sizes"].values()),
        *(_time(form, is_rate) for form in forms),
        f"{ratio['of_medians']:.2f} [{ratio['paired_min']:.2f}, {ratio['paired_max']:.2f}]",
        *(f"{form['peak_memory_bytes'] / 2**20:.1f}" for form in forms),
        f"{line['max_abs_difference']:.1e} / {line['max_abs_value']:.3g}",
    ]
    return _line(cells, widths)


def _time(form: dict[str, Any], is_rate: bool) -> str:
    middle, low, high = (form[f"{name}_seconds"] for name in ("median", "min", "max"))
    if is_rate:
        return f"{1 / middle:.4g} [{1 / high:.4g}, {1 / low:.4g}]"
    return f"{1e3 * middle:.4g} [{1e3 * low:.4g}, {1e3 * high:.4g}]"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
