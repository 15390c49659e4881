"""`bench step --objective dflash`: a DFlash step of the compact path beside the plain one, and a peer's if asked."""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from eaglepipe.bench.dflash.report import DflashStepReport, DflashWorkload
from eaglepipe.bench.dflash.step import MAX_ANCHORS, NUM_AUX, NUM_LAYERS, DflashStep
from eaglepipe.bench.peers.comparison import OURS, PassFn, compare
from eaglepipe.bench.peers.packages import SPECULATORS, installed_packages
from eaglepipe.bench.peers.speculators_dflash import SpeculatorsDflash
from eaglepipe.bench.step_presets import StepPreset, Workload
from eaglepipe.bench.timing import bench_device
from eaglepipe.errors import ConfigError


def measure_dflash_step(preset: StepPreset, *, rounds: int | None = None, peers: bool = False) -> DflashStepReport:
    """Run every workload of a preset on a cache made for it, of five aux layers.

    Raises:
        ConfigError: the preset is sparse, or for CUDA and there is no such device, or no peer's package is
            installed.
    """
    if preset.is_sparse:
        raise ConfigError(f"preset {preset.name} is of EAGLE-3 steps; choose another with --objective dflash")
    peer = installed_packages([SPECULATORS])[0].title if peers else None
    device = bench_device(preset.device, f"preset {preset.name}")
    rounds = preset.rounds if rounds is None else rounds
    preset = replace(preset, shape=replace(preset.shape, num_aux=NUM_AUX))
    return DflashStepReport(
        preset=preset.name,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        dtype=preset.dtype,
        threads=torch.get_num_threads(),
        rounds=rounds,
        workloads=tuple(_measure_workload(preset, workload, device, rounds, peer) for workload in preset.workloads),
    )


def _measure_workload(
    preset: StepPreset,
    workload: Workload,
    device: torch.device,
    rounds: int,
    peer: str | None,
) -> DflashWorkload:
    with tempfile.TemporaryDirectory(prefix="eaglepipe-bench-") as folder:
        cache = workload.write_cache(Path(folder), preset.shape)
        step = DflashStep(preset, workload, cache, device)
        passes: dict[str, PassFn] = {
            OURS: step.run_compact,
            "reference": step.run_plain,
        }
        config = step.config
        sizes = f"{NUM_LAYERS} layers, {NUM_AUX} aux layers"
        notes = [f"blocks of {config.block_size}, {MAX_ANCHORS} a sample at most, {sizes}"]
        if peer is not None:
            other = SpeculatorsDflash(step)
            passes[peer] = other.run_all
            notes.append(other.note)
        supervised = step.header.num_supervised
        return DflashWorkload(
            name=workload.name,
            tokens=step.header.num_tokens,
            supervised_tokens=supervised,
            guesses=step.num_guesses,
            comparison=compare(passes, rounds, supervised_tokens=supervised, notes=notes),
        )
