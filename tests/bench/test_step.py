import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eaglepipe.bench.dflash.measure import measure_dflash_step
from eaglepipe.bench.products import AttentionProducts, LinearProducts, unroll_products
from eaglepipe.bench.step import measure_step
from eaglepipe.bench.step_paths import StepPath, StepSetup
from eaglepipe.bench.step_presets import StepPreset, Workload, find_step_preset
from eaglepipe.bench.step_report import StepReport
from eaglepipe.errors import ConfigError
from tests.bench.tiny_bench import CHAT, FULL, PRESET, SHAPE

CPU = torch.device("cpu")
KEYS = {
    "supervised_tokens_per_s",
    "reference_supervised_tokens_per_s",
    "ratio",
    "peak_memory_ratio",
    "ratio_to_matmuls",
    "data_wait",
    "tokens_per_s",
    "flops_per_s",
    "share_of_matmul_rate",
    "peak_bytes",
    "reference_peak_bytes",
}


@pytest.fixture(scope="module")
def report(warm_processes: None) -> StepReport:
    return measure_step(PRESET)


def test_report_has_every_promised_key_and_survives_json(report: StepReport) -> None:
    fields = json.loads(json.dumps(report.to_json()))
    assert fields.keys() >= KEYS
    assert all(workload.keys() >= KEYS for workload in fields["workloads"])


def test_every_ratio_is_that_of_the_times_it_comes_from(report: StepReport) -> None:
    for workload in report.to_json()["workloads"]:
        assert workload["ratio"] == pytest.approx(workload["reference_seconds"] / workload["seconds"])
        rates = workload["supervised_tokens_per_s"] / workload["reference_supervised_tokens_per_s"]
        assert workload["ratio"] == pytest.approx(rates)
        alone = workload["linear_seconds"] + workload["attention_seconds"]
        assert workload["ratio_to_matmuls"] == pytest.approx(workload["seconds"] / alone)
        assert workload["flops_per_s"] == pytest.approx(workload["flops"] / workload["seconds"])
        assert min(workload[key] for key in KEYS - {"data_wait", "peak_memory_ratio", "peak_bytes"}) > 0
        assert 0 <= workload["data_wait"] <= 1


def test_preset_is_summed_up_by_its_worst_workload(report: StepReport) -> None:
    (work,) = report.workloads
    slower = replace(work, seconds=2 * work.seconds)
    fields = replace(report, workloads=(work, slower)).to_json()
    assert fields["ratio"] == slower.to_json()["ratio"]
    assert fields["ratio"] == min(workload["ratio"] for workload in fields["workloads"])
    assert fields["ratio_to_matmuls"] == max(workload["ratio_to_matmuls"] for workload in fields["workloads"])


def test_both_paths_have_the_same_loss(report: StepReport) -> None:
    assert all(workload.loss_difference < 1e-5 for workload in report.workloads)


def test_table_fits_a_screen(report: StepReport) -> None:
    lines = report.table().splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 100


def test_sparse_rows_are_of_unequal_length_and_both_paths_have_the_same_loss(tmp_path: Path) -> None:
    sparse = replace(CHAT, name="tiny, sparse", max_entries=20)
    (report,) = measure_step(replace(PRESET, workloads=(sparse,)), rounds=1).workloads
    assert report.loss_difference < 1e-5
    cache = sparse.write_cache(tmp_path, SHAPE)
    counts = torch.cat([torch.from_numpy(cache.read(i).supervision["num_entries"]) for i in range(cache.num_samples)])
    assert counts.max() == 20 and counts.float().median() < 10


def test_sparse_preset_has_no_row_of_a_peer_and_no_dflash_step() -> None:
    sparse = find_step_preset("cpu-sparse")
    with pytest.raises(ConfigError, match="cpu-sparse"):
        measure_step(sparse, peers=True)
    with pytest.raises(ConfigError, match="cpu-sparse"):
        measure_dflash_step(sparse)


def path_of(folder: Path, workload: Workload, ttt_steps: int) -> StepPath:
    cache = workload.write_cache(folder, SHAPE)
    preset = StepPreset(
        name="tiny", device="cpu", dtype="float32", shape=SHAPE, workloads=(workload,), ttt_steps=ttt_steps
    )
    return StepPath(StepSetup(preset=preset, workload=workload, cache=cache, device=CPU), "compact")


def test_flop_of_two_full_rows_and_one_step_are_those_counted_by_hand(tmp_path: Path) -> None:
    products = path_of(tmp_path, FULL, ttt_steps=1).products()
    # 16 tokens a row, shifted: 14 slots of each have a next token to draft, so 14 of 16 are computed at all.
    slots, hidden, ffn, keys_values, heads_width = 2 * 14, 16, 24, 2 * 2 * 4, 4 * 4
    forward = slots * 3 * hidden * hidden  # fc
    forward += 2 * slots * hidden * (heads_width + keys_values)  # embedding's half and state's half
    forward += slots * (heads_width * hidden + 3 * hidden * ffn + hidden * 40)
    linear = 2 * 3 * forward - 2 * slots * 3 * hidden * hidden  # aux states take no gradient
    pairs = 2 * 14 * 15 // 2
    attention = 7 * 2 * pairs * heads_width
    assert sum(product.flops for product in products if isinstance(product, LinearProducts)) == linear
    assert sum(product.flops for product in products if isinstance(product, AttentionProducts)) == attention


def test_products_follow_the_slots_that_each_step_computes(tmp_path: Path) -> None:
    path = path_of(tmp_path, CHAT, ttt_steps=3)
    heads = [p for p in path.products() if isinstance(p, LinearProducts) and p.columns == SHAPE.draft_vocab_size]
    assert sum(product.rows for product in heads) == int(path.header.counts.sum())


def test_long_head_is_counted_in_chunks_that_add_up(tmp_path: Path) -> None:
    path = path_of(tmp_path, FULL, ttt_steps=2)
    config = path.module.draft_model.config
    plans = path.plans()
    whole, chunked = (
        sum(p.flops for plan in plans for p in unroll_products(config, plan, head_chunk_rows=rows)) for rows in (512, 5)
    )
    assert whole == chunked


def test_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="cpu-chat"):
        find_step_preset("cpu-chatt")


@pytest.mark.skipif(torch.cuda.is_available(), reason="refused only where there is no CUDA device")
def test_cuda_preset_without_cuda_is_refused_before_anything_is_built() -> None:
    with pytest.raises(ConfigError, match="CUDA"):
        measure_step(find_step_preset("llama3.1-8b"))
