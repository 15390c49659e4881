"""`bench step`: a training step of the compact path, beside the plain reference and its matrix products alone."""

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eaglepipe.bench.peak import in_fresh_process, peak_bytes
from eaglepipe.bench.peers.comparison import OURS, Comparison, PassFn, compare
from eaglepipe.bench.peers.eagle3_peers import EAGLE3_PEERS
from eaglepipe.bench.peers.packages import PeerPackage, installed_packages, missing_note
from eaglepipe.bench.products import AttentionProducts, LinearProducts, ProductRunner, Products
from eaglepipe.bench.step_paths import Implementation, StepPath, StepSetup
from eaglepipe.bench.step_presets import StepPreset, Workload
from eaglepipe.bench.step_report import StepReport, WorkloadReport
from eaglepipe.bench.timing import bench_device, median_seconds, timed
from eaglepipe.cache.reader import Cache
from eaglepipe.devices import matmul_rate
from eaglepipe.errors import ConfigError
from eaglepipe.training.data.batch import DataPosition
from eaglepipe.training.data.loader import Loader
from eaglepipe.training.data.order import SampleOrder
from eaglepipe.training.data.packing import plan_steps
from eaglepipe.training.objectives.builders import build_eagle3_draft
from eaglepipe.training.objectives.eagle3 import draw_slots
from eaglepipe.training.run.learner import Learner
from eaglepipe.training.run.ranks.distributed import World

_WAIT_EPOCHS = 2


def measure_step(preset: StepPreset, *, rounds: int | None = None, peers: bool = False) -> StepReport:
    """Run every workload of a preset on a cache made for it, and if asked for the steps of the installed peers too.

    Raises:
        ConfigError: the preset is for CUDA and there is no such device, or no peer is installed or can run it.
    """
    packages = _peers_of(preset) if peers else ()
    device = bench_device(preset.device, f"preset {preset.name}")
    rounds = preset.rounds if rounds is None else rounds
    reports = [_measure_workload(preset, workload, device, rounds, packages) for workload in preset.workloads]
    return StepReport(
        preset=preset.name,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        dtype=preset.dtype,
        threads=torch.get_num_threads(),
        rounds=rounds,
        workloads=tuple(reports),
    )


def _peers_of(preset: StepPreset) -> Sequence[PeerPackage]:
    if preset.is_sparse:
        raise ConfigError(
            f"bench step --peers gives other packages last hidden states, which preset {preset.name} does not have; "
            "leave --peers out, or choose another preset"
        )
    return installed_packages(EAGLE3_PEERS)


def _measure_workload(
    preset: StepPreset, workload: Workload, device: torch.device, rounds: int, packages: Sequence[PeerPackage]
) -> WorkloadReport:
    with tempfile.TemporaryDirectory(prefix="eaglepipe-bench-") as folder:
        cache = workload.write_cache(Path(folder), preset.shape)
        setup = StepSetup(preset=preset, workload=workload, cache=cache, device=device)
        compact_peak, reference_peak = _peaks(setup)
        compact, reference = StepPath(setup, "compact"), StepPath(setup, "reference")
        products = compact.products()
        seconds, loss_difference = _run_in_turn(setup, compact, reference, products, rounds)
        return WorkloadReport(
            name=workload.name,
            tokens=compact.header.num_tokens,
            supervised_tokens=compact.header.num_supervised,
            padding=compact.padding,
            reference_padding=reference.padding,
            seconds=seconds["compact"],
            reference_seconds=seconds["reference"],
            linear_seconds=seconds["linear"],
            attention_seconds=seconds["attention"],
            flops=sum(product.flops for product in products),
            device_matmul_rate=seconds["rate"],
            peak_bytes=compact_peak,
            reference_peak_bytes=reference_peak,
            data_wait=_data_wait(setup),
            loss_difference=loss_difference,
            comparison=_compare(compact, reference, packages, rounds) if packages else None,
        )


def _compare(compact: StepPath, reference: StepPath, packages: Sequence[PeerPackage], rounds: int) -> Comparison:
    peers = {package.title: EAGLE3_PEERS[package](compact) for package in packages}
    passes: dict[str, PassFn] = {OURS: compact.run_decoded, "reference": reference.run_decoded}
    passes |= {title: peer.run_all for title, peer in peers.items()}
    notes = [*(peer.note for peer in peers.values()), *missing_note(EAGLE3_PEERS)]
    return compare(passes, rounds, supervised_tokens=compact.header.num_supervised, notes=notes)


def _run_in_turn(
    setup: StepSetup, compact: StepPath, reference: StepPath, products: Sequence[Products], rounds: int
) -> tuple[dict[str, float], float]:
    """Return the medians of all that is compared, and the relative difference of the two paths' losses."""
    assert torch.equal(compact.header.counts, reference.header.counts), "both paths take the same losses"
    losses: dict[str, torch.Tensor] = {}

    def run(name: str, path: StepPath) -> float:
        seconds, losses[name] = path.run_all()
        return seconds

    seconds = median_seconds(
        {
            "rate": partial(matmul_rate, setup.device, setup.dtype),
            "compact": partial(run, "compact", compact),
            "linear": _runner(setup, [product for product in products if isinstance(product, LinearProducts)]),
            "attention": _runner(setup, [product for product in products if isinstance(product, AttentionProducts)]),
            "reference": partial(run, "reference", reference),
        },
        rounds,
    )
    return seconds, (losses["compact"].sum() / losses["reference"].sum() - 1).abs().item()


def _runner(setup: StepSetup, products: Sequence[Products]) -> Callable[[], float]:
    run = ProductRunner(products, device=setup.device, dtype=setup.dtype)
    return lambda: timed(run, setup.device)[0]


def _peaks(setup: StepSetup) -> tuple[int, int]:
    arguments = (setup.preset, setup.workload, setup.cache.folder)
    return peaks_of_paths(*arguments) if setup.device.type == "cuda" else in_fresh_process(peaks_of_paths, *arguments)


def peaks_of_paths(preset: StepPreset, workload: Workload, folder: Path) -> tuple[int, int]:
    """Return peak bytes of a step on the largest batch, decoded supervision and gradients included, of both paths.

    The compact one goes first, so that memory which an allocator keeps counts for it and not for the reference.
    """
    device = torch.device(preset.device)
    torch.ones(256, 256) @ torch.ones(256, 256)  # the library's own buffers are there before the measurement

    def peak(implementation: Implementation) -> int:
        setup = StepSetup(preset=preset, workload=workload, cache=Cache.open(folder), device=device)
        path = StepPath(setup, implementation)
        batch = path.largest()
        return peak_bytes(lambda: path.step(path.decode(batch)), device)

    return peak("compact"), peak("reference")


def _data_wait(setup: StepSetup) -> float:
    """Return the share of real optimizer steps' time in which the loop waited for its loader."""
    index, config = setup.cache.index, setup.train_config()
    draft: Any = build_eagle3_draft(setup.cache, setup.draft_config(), seed=0)
    learner = Learner(setup.cache, draft, config, World(device=setup.device))
    order = SampleOrder(
        samples=np.arange(setup.cache.num_samples),
        num_tokens=index.num_tokens,
        identity=setup.cache.identity,
        seed=0,
        epochs=_WAIT_EPOCHS,
        batch_tokens=config.batch_tokens,
    )
    plans = plan_steps(order, learner.costs(index, training=True), limits=setup.limits, start=DataPosition())
    draw = draw_slots(config.ttt_steps)
    with Loader(setup.cache, plans, draw=draw, device=setup.device, prefetch_batches=config.prefetch_batches) as loader:
        steps = iter(loader)
        first = next(steps)
        started, waited_before = time.perf_counter(), loader.waited_seconds
        for header, batches in chain([first], steps):
            learner.step(batches, header.counts, config.learning_rate).loss.item()
        return (loader.waited_seconds - waited_before) / (time.perf_counter() - started)
