"""`bench step`: a training step of the compact path against the plain reference, and against its products alone."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eaglepipe.bench.made_cache import write_made_cache
from eaglepipe.bench.peak import in_fresh_process, peak_bytes
from eaglepipe.bench.products import LinearProducts, ProductRunner, Products
from eaglepipe.bench.step_paths import Implementation, PathSizes, StepPath, draft_settings, train_settings
from eaglepipe.bench.step_presets import StepPreset, Workload
from eaglepipe.bench.step_report import StepReport, WorkloadReport
from eaglepipe.bench.timing import bench_device, median_seconds, timed
from eaglepipe.cache.reader import Cache
from eaglepipe.target.speed import matmul_rate
from eaglepipe.training.data.batch import DataPosition, PackingLimits
from eaglepipe.training.data.loader import Loader
from eaglepipe.training.data.order import SampleOrder
from eaglepipe.training.data.packing import plan_steps
from eaglepipe.training.objectives.builders import build_eagle3_draft
from eaglepipe.training.objectives.eagle3 import draw_slots
from eaglepipe.training.run.distributed import World
from eaglepipe.training.run.learner import COMPUTE_DTYPES, Learner

_WAIT_EPOCHS = 2


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """One workload in the making."""

    preset: StepPreset
    workload: Workload
    cache: Cache
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        return COMPUTE_DTYPES[self.preset.dtype]


def measure_step(preset: StepPreset, *, rounds: int | None = None) -> StepReport:
    """Run every workload of a preset on a cache made for it.

    Raises:
        ConfigError: the preset is for CUDA and there is no such device.
    """
    device = bench_device(preset.device, f"preset {preset.name}")
    rounds = preset.rounds if rounds is None else rounds
    reports = [_measure_workload(preset, workload, device, rounds) for workload in preset.workloads]
    return StepReport(
        preset=preset.name,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        dtype=preset.dtype,
        threads=torch.get_num_threads(),
        rounds=rounds,
        workloads=tuple(reports),
    )


def _measure_workload(preset: StepPreset, workload: Workload, device: torch.device, rounds: int) -> WorkloadReport:
    with tempfile.TemporaryDirectory(prefix="eaglepipe-bench-") as folder:
        cache = write_made_cache(Path(folder), preset.shape, workload.lengths, assistant_share=workload.assistant_share)
        bench = _Bench(preset=preset, workload=workload, cache=cache, device=device)
        compact_peak, reference_peak = _peaks(bench)
        seconds, paths, flops, loss_difference = _run_in_turn(bench, rounds)
        return WorkloadReport(
            name=workload.name,
            tokens=paths["compact"].tokens,
            supervised_tokens=paths["compact"].supervised_tokens,
            padding=paths["compact"].padding,
            reference_padding=paths["reference"].padding,
            seconds=seconds["compact"],
            reference_seconds=seconds["reference"],
            linear_seconds=seconds["linear"],
            attention_seconds=seconds["attention"],
            flops=flops,
            device_matmul_rate=seconds["rate"],
            peak_bytes=compact_peak,
            reference_peak_bytes=reference_peak,
            data_wait=_data_wait(bench),
            loss_difference=loss_difference,
        )


def _run_in_turn(bench: _Bench, rounds: int) -> tuple[dict[str, float], dict[Implementation, PathSizes], int, float]:
    """Medians of all that is compared; sizes; FLOP of the compact path; how far the two losses are apart."""
    compact = _path(bench, "compact")
    reference = _path(bench, "reference")
    assert torch.equal(compact.sizes.counts, reference.sizes.counts), "both paths take the same losses"
    losses: dict[Implementation, torch.Tensor] = {}

    def run(name: Implementation, path: StepPath) -> float:
        seconds, losses[name] = path.run_all()
        return seconds

    products = compact.products()
    linear = [product for product in products if isinstance(product, LinearProducts)]
    attention = [product for product in products if not isinstance(product, LinearProducts)]
    seconds = median_seconds(
        {
            "rate": partial(matmul_rate, bench.device, bench.dtype),
            "compact": partial(run, "compact", compact),
            "linear": _runner(bench, linear),
            "attention": _runner(bench, attention),
            "reference": partial(run, "reference", reference),
        },
        rounds,
    )
    difference = (losses["compact"].sum() / losses["reference"].sum() - 1).abs().item()
    sizes: dict[Implementation, PathSizes] = {"compact": compact.sizes, "reference": reference.sizes}
    return seconds, sizes, sum(product.flops for product in products), difference


def _runner(bench: _Bench, products: Sequence[Products]) -> Callable[[], float]:
    run = ProductRunner(products, device=bench.device, dtype=bench.dtype)
    return lambda: timed(run, bench.device)[0]


def _path(bench: _Bench, implementation: Implementation) -> StepPath:
    return StepPath(bench.preset, bench.workload, bench.cache, implementation, bench.device)


def _peaks(bench: _Bench) -> tuple[int, int]:
    arguments = (bench.preset, bench.workload, bench.cache.folder)
    return peaks_of_paths(*arguments) if bench.device.type == "cuda" else in_fresh_process(peaks_of_paths, *arguments)


def peaks_of_paths(preset: StepPreset, workload: Workload, folder: Path) -> tuple[int, int]:
    """Bytes that the step on the largest batch takes, decoded supervision and gradients included: compact, reference.

    The compact one goes first, so that what an allocator keeps is counted to it and not to the reference.
    """
    device = torch.device(preset.device)
    torch.ones(256, 256) @ torch.ones(256, 256)  # the library's own buffers are there before the work is

    def peak(implementation: Implementation) -> int:
        path = StepPath(preset, workload, Cache.open(folder), implementation, device)
        batch = path.largest()
        return peak_bytes(lambda: path.step(path.decode(batch)), device)

    return peak("compact"), peak("reference")


def _data_wait(bench: _Bench) -> float:
    """Share of the time of real optimizer steps in which the loop waited for its loader, from the first step on."""
    index = bench.cache.index
    config = train_settings(bench.preset, bench.workload, int(index.num_tokens.sum()))
    draft: Any = build_eagle3_draft(bench.cache, draft_settings(bench.preset.shape), seed=0)
    learner = Learner(bench.cache, draft, config, World(device=bench.device))
    order = SampleOrder(
        samples=np.arange(bench.cache.num_samples),
        num_tokens=index.num_tokens,
        identity=bench.cache.identity,
        seed=0,
        epochs=_WAIT_EPOCHS,
        batch_tokens=config.batch_tokens,
    )
    limits = PackingLimits(pack_length=bench.workload.pack_length, micro_batch_tokens=config.micro_batch_tokens)
    plans = plan_steps(order, learner.costs(index, training=True), limits=limits, start=DataPosition())
    draw = draw_slots(config.ttt_steps)
    with Loader(bench.cache, plans, draw=draw, device=bench.device, prefetch_batches=config.prefetch_batches) as loader:
        steps = iter(loader)
        header, batches = next(steps)
        started, waited_before = time.perf_counter(), loader.waited_seconds
        while True:
            learner.step(batches, header.counts, config.learning_rate).loss.item()
            if (following := next(steps, None)) is None:
                break
            header, batches = following
        return (loader.waited_seconds - waited_before) / (time.perf_counter() - started)
