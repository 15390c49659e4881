"""Measurements of a machine with an accelerator: tests of CUDA, training steps, stage 1 and the loader, in one table.

Each part stands by itself: one that fails leaves its message in the table, and the others are measured all the same.
"""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from eaglepipe.bench.made_cache import SHAPE_8B
from eaglepipe.bench.precompute import TARGET_SHAPE, measure_precompute
from eaglepipe.bench.read import READ_SHAPE, measure_read
from eaglepipe.bench.step import measure_step
from eaglepipe.bench.step_paths import StepPath, StepSetup
from eaglepipe.bench.step_presets import StepPreset, Workload, find_step_preset
from eaglepipe.errors import ConfigError, EaglepipeError, first_line
from eaglepipe.tables import text_table
from tests.bench.tiny_bench import PRESET, SHAPE

PRESETS = ("llama3.1-8b", "qwen3-8b")
TINY = "tiny"
CUDA_TESTS = (
    "tests/training/test_cuda.py",
    "tests/eagle/kernels/test_cuda_kernels.py",
    "tests/eagle/dflash/test_cuda_blocks.py",
    "tests/eagle/peagle/test_peagle_attention.py",
    "tests/eagle/peagle/test_peagle_trainer.py",
    "tests/eagle/unroll/test_nothing_read_back.py",
)
_TESTS_SECONDS = 300
_FAILED = re.compile(r"\b\d+ (?:failed|errors?)\b")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table; empty cells are figures that a part does not have."""

    part: str
    workload: str = ""
    tokens_per_s: float | None = None
    rate_share: float | None = None  # of the measured rate of matrix products in the same dtype
    peak_bytes: int | None = None
    float32_difference: float | None = None  # of the summed loss, relative
    note: str = ""
    failed: bool = False

    def cells(self) -> tuple[str, ...]:
        return (
            self.part,
            self.workload,
            "" if self.tokens_per_s is None else f"{self.tokens_per_s:,.0f}",
            "" if self.rate_share is None else f"{self.rate_share:.0%}",
            "" if self.peak_bytes is None else f"{self.peak_bytes / 2**30:.2f}",
            "" if self.float32_difference is None else f"{self.float32_difference:.1e}",
            self.note,
        )


def check_device(kind: str) -> None:
    """Refuse a machine without the device.

    Raises:
        ConfigError: in one message, with the command that runs here.
    """
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "make gpu measures an accelerator, and torch sees none on this machine; the same parts run on the CPU, "
            'tiny, with `make gpu ARGS="--device cpu --preset tiny"`'
        )


def chosen_presets(names: Iterable[str], device: str) -> list[StepPreset]:
    """Return the presets; those of GPUs run on a CPU if it is asked for, which takes a long time.

    Raises:
        ConfigError: no such preset.
    """
    presets = [replace(PRESET, name=TINY, dtype="bfloat16") if n == TINY else find_step_preset(n) for n in names]
    return [replace(preset, device="cuda" if device == "cuda" else "cpu") for preset in presets]


def measure_all(presets: list[StepPreset], *, device: str, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Measure every part in turn; a part that fails has a row with its message."""
    is_tiny = all(preset.name == TINY for preset in presets)
    parts: dict[str, Callable[[], list[Row]]] = {}
    if device == "cuda":
        parts["CUDA tests"] = run_cuda_tests
    parts |= {f"step {preset.name}": lambda preset=preset: step_rows(preset, rounds) for preset in presets}
    parts["stage 1"] = lambda: [stage_row(device, rounds, is_tiny=is_tiny)]
    parts["loader"] = lambda: [loader_row(rounds, is_tiny=is_tiny)]
    rows = []
    for name, measure in parts.items():
        started = time.monotonic()
        rows += attempted(name, measure)
        say(f"{name}: {time.monotonic() - started:.0f} s")
    return rows


def attempted(part: str, measure: Callable[[], list[Row]]) -> list[Row]:
    """Return the rows of a part, or one with the message of its failure."""
    try:
        return measure()
    except (
        EaglepipeError,
        RuntimeError,
        AssertionError,
        ValueError,
    ) as error:  # whatever breaks on a device
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return [Row(part=part, note=f"FAILED: {type(error).__name__}: {first_line(error)}", failed=True)]


def run_cuda_tests() -> list[Row]:
    """Run the tests that need a device, in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "--continue-on-collection-errors", *CUDA_TESTS]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TESTS_SECONDS)
    except subprocess.TimeoutExpired:
        return [Row(part="CUDA tests", note=f"FAILED: not done within {_TESTS_SECONDS} s", failed=True)]
    lines = run.stdout.strip().splitlines() or run.stderr.strip().splitlines() or ["no output"]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    note = "; ".join([lines[-1].strip("= "), *failed[:3]])
    return [Row(part="CUDA tests", note=note, failed=run.returncode != 0 or bool(_FAILED.search(lines[-1])))]


def step_rows(preset: StepPreset, rounds: int) -> list[Row]:
    """Measure a training step on every workload of a preset, and its loss against float32."""
    report = measure_step(preset, rounds=rounds).to_json()
    rows = []
    for workload, measured in zip(preset.workloads, report["workloads"], strict=True):
        note = f"{measured['ratio']:.1f} times the reference, {measured['ratio_to_matmuls']:.2f} of its products' time"
        rows.append(
            Row(
                part=f"step {preset.name}",
                workload=workload.name,
                tokens_per_s=measured["tokens_per_s"],
                rate_share=measured["share_of_matmul_rate"],
                peak_bytes=measured["peak_bytes"],
                float32_difference=float32_difference(preset, workload),
                note=note,
            )
        )
    return rows


def float32_difference(preset: StepPreset, workload: Workload) -> float:
    """Return the relative difference of a workload's summed loss from that of the same pass in float32."""
    with tempfile.TemporaryDirectory(prefix="eaglepipe-bench-") as folder:
        cache = workload.write_cache(Path(folder), preset.shape)
        losses = []
        for dtype in (preset.dtype, "float32"):
            of_dtype = replace(preset, dtype=dtype)
            setup = StepSetup(preset=of_dtype, workload=workload, cache=cache, device=torch.device(preset.device))
            losses.append(float(StepPath(setup, "compact").run_all()[1].sum()))
    return abs(losses[0] / losses[1] - 1)


def stage_row(device: str, rounds: int, *, is_tiny: bool) -> Row:
    """Measure stage 1 on a target of random weights."""
    shape, samples = (SHAPE, 6) if is_tiny else (TARGET_SHAPE, 64)
    if device == "cuda" and not is_tiny:
        shape = replace(SHAPE_8B, num_hidden_layers=4)
    dtype = "bfloat16" if device == "cuda" else "float32"
    tokens = 1024 if is_tiny else 8192
    report = measure_precompute(
        shape=shape, num_samples=samples, batch_tokens=tokens, rounds=rounds, device=device, dtype=dtype
    ).to_json()
    note = f"{report['ratio']:.2f} times the model's own forward, {report['bytes_per_s'] / 1e9:.2f} GB/s written"
    return Row(part="stage 1", workload=f"{samples} chats", tokens_per_s=report["tokens_per_s"], note=note)


def loader_row(rounds: int, *, is_tiny: bool) -> Row:
    """Measure the loader against a plain read of the same bytes."""
    shape, samples = (SHAPE, 6) if is_tiny else (READ_SHAPE, 96)
    report = measure_read(shape=shape, num_samples=samples, rounds=rounds).to_json()
    note = f"{report['ratio_to_raw']:.2f} of a plain read, {report['bytes_per_s'] / 1e9:.2f} GB/s"
    return Row(part="loader", workload=f"{samples} chats", tokens_per_s=report["tokens_per_s"], note=note)


def device_name(kind: str) -> str:
    """Return the name of the device, with its memory and the version of torch."""
    if kind != "cuda":
        return f"cpu, {torch.get_num_threads()} thread(s), torch {torch.__version__}"
    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, torch {torch.__version__}"


def table(rows: list[Row], device: str) -> str:
    """Return the table, headed by the device."""
    columns = {
        "part": "left",
        "workload": "left",
        "tokens/s": "right",
        "of matrix rate": "right",
        "peak GiB": "right",
        "from float32": "right",
        "": "left",
    }
    return f"{device}\n{text_table(columns, [row.cells() for row in rows])}"
