"""Time, memory, environment and result lines: what the benchmarks of the two generator forms share."""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
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

FORMS: tuple[Modulation, ...] = ("activations", "weights")
MIN_SAMPLE_SECONDS = 0.05
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
    """

    name: str
    per: str
    difference_of: str
    build: Callable[[C, Modulation, torch.device], Work]
    smallest: C


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """The options that both benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=["digits", "config_f"], help="channel tables")
    parser.add_argument("--resolutions", nargs="+", type=int, help="32 64 on a CPU, 32 64 256 on CUDA when not given")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--repeats", type=int, default=5, help="samples of each form, taken alternately")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="file of JSON lines to append to; the screen when not given")
    parser.add_argument("--commit", help="what was measured, where the code lies outside git")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, with device and resolutions decided and the threads set."""
    options = parser.parse_args(arguments)
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    options.resolutions = options.resolutions or ([32, 64] if options.device == "cpu" else [32, 64, 256])
    if min(options.repeats, options.threads, *options.batch_sizes) < 1:
        parser.error("--repeats, --threads and --batch-sizes must be at least 1")
    if not generators(options):
        parser.error(f"no table of {options.tables} has a resolution of {options.resolutions}; digits are 32 pixels")
    torch.set_num_threads(options.threads)
    return options


def generators(options: argparse.Namespace) -> list[tuple[str, int]]:
    """The chosen (table, resolution) pairs."""
    return [(table, side) for table in options.tables for side in options.resolutions if has_resolution(table, side)]


def run(benchmark: Benchmark[C], cells: Sequence[C], options: argparse.Namespace) -> None:
    """Measure every cell: a row of the table and a JSON line, written as soon as the cell is done."""
    device = torch.device(options.device)
    surroundings = environment(device, options.commit)
    print(f"{benchmark.name} on {surroundings['device_name']}, {options.threads} thread(s); ms per {benchmark.per}")
    print(_header(cells[0]), flush=True)
    lines: list[str] = []
    for cell in cells:
        result = {
            "benchmark": benchmark.name,
            **surroundings,
            "load_average": [round(load, 2) for load in os.getloadavg()],
            "sizes": asdict(cell),
            **compare(benchmark, cell, repeats=options.repeats, device=device),
        }
        print(_row(result), flush=True)
        lines.append(json.dumps(result))
        if options.output is not None:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            with options.output.open("a") as file:
                print(lines[-1], file=file)
    if options.output is None:
        print("\n".join(lines))


def compare(benchmark: Benchmark[C], cell: C, *, repeats: int, device: torch.device) -> dict[str, Any]:
    """Both forms side by side: seconds per unit, memory, the ratio weights / activations, and how far they differ.

    Samples alternate and change order (AB BA AB ...), so that what slows the machine down meets both forms.
    """
    memory = {form: peak_memory(benchmark, cell, form, device) for form in FORMS}
    works = {form: benchmark.build(cell, form, device) for form in FORMS}
    results = {form: work() for form, work in works.items()}  # the first warm-up
    calls = {form: math.ceil(MIN_SAMPLE_SECONDS / _seconds(work, 1, device)) for form, work in works.items()}
    samples: dict[Modulation, list[float]] = {form: [] for form in FORMS}
    for repeat in range(repeats):
        for form in FORMS if repeat % 2 == 0 else reversed(FORMS):
            samples[form].append(_seconds(works[form], calls[form], device) / cell.units)
    activations, weights = (samples[form] for form in FORMS)
    paired = [b / a for a, b in zip(activations, weights, strict=True)]
    return {
        "per": benchmark.per,
        "repeats": repeats,
        "forms": {
            form: {
                "median_seconds": median(samples[form]),
                "min_seconds": min(samples[form]),
                "max_seconds": max(samples[form]),
                **memory[form],
            }
            for form in FORMS
        },
        "ratio": {
            "of_medians": median(weights) / median(activations),
            "paired_min": min(paired),
            "paired_median": median(paired),
            "paired_max": max(paired),
        },
        "difference_of": benchmark.difference_of,
        "max_abs_difference": (results["activations"] - results["weights"]).abs().max().item(),
        "max_abs_value": results["activations"].abs().max().item(),
    }


def peak_memory(benchmark: Benchmark[C], cell: C, form: Modulation, device: torch.device) -> dict[str, int | str]:
    """Bytes that one call of the work needs at its peak, above what was held before it.

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


def _peak_memory_here(benchmark: Benchmark[C], cell: C, form: Modulation, device: torch.device) -> dict[str, int | str]:
    benchmark.build(benchmark.smallest, form, device)()  # what is paid once: libraries, imports, workspaces
    work = benchmark.build(cell, form, device)
    _reset_peak(device)
    held = _peak_bytes(device)
    work()
    measure = "max_memory_allocated" if device.type == "cuda" else "ru_maxrss of a process"
    return {"peak_memory_bytes": _peak_bytes(device) - held, "held_memory_bytes": held, "memory_measure": measure}


def _reset_peak(device: torch.device) -> None:
    """Let the maximum start again from what is held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # what was freed must not be reused unseen
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _seconds(work: Work, calls: int, device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        work()
    _synchronize(device)
    return (time.perf_counter() - start) / calls


def _synchronize(device: torch.device) -> None:
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


COLUMNS = ("activations", "weights", "ratio (paired)", "MiB act.", "MiB wts.", "max diff. / max")


def _header(cell: Cell) -> str:
    return _line([*asdict(cell), *COLUMNS], [*asdict(cell)])


def _row(line: dict[str, Any]) -> str:
    forms, ratio = line["forms"].values(), line["ratio"]
    cells = [
        *(str(size) for size in line["sizes"].values()),
        *(
            f"{1e3 * form['median_seconds']:.4g} [{1e3 * form['min_seconds']:.4g}, {1e3 * form['max_seconds']:.4g}]"
            for form in forms
        ),
        f"{ratio['of_medians']:.2f} [{ratio['paired_min']:.2f}, {ratio['paired_max']:.2f}]",
        *(f"{form['peak_memory_bytes'] / 2**20:.1f}" for form in forms),
        f"{line['max_abs_difference']:.1e} / {line['max_abs_value']:.3g}",
    ]
    return _line(cells, [*line["sizes"]])


def _line(cells: Sequence[str], sizes: Sequence[str]) -> str:
    widths = [max(len(size), 9) for size in sizes] + [24, 24, 18, 9, 9, 16]
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
