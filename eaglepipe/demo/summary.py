"""The demo's last page: the cache, its cost, and the draft's quality."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eaglepipe.precompute.stage import PrecomputeResult
from eaglepipe.tables import field_table, text_table
from eaglepipe.train import TrainResult


def summarise(
    cache: PrecomputeResult,
    trained: TrainResult,
    draft_figures: Mapping[str, Any],
    seconds_by_stage: Mapping[str, float],
) -> dict[str, Any]:
    """Return the figures of a finished demo, as its `summary.json` holds them."""
    return {
        "samples": cache.samples,
        "tokens": cache.tokens,
        "supervised_tokens": cache.supervised_tokens,
        "bytes_per_token": round(cache.bytes / cache.tokens, 1),
        "cache_bytes": cache.bytes,
        "cache": cache.folder,
        "steps": trained.steps,
        "best_step": trained.best_step,
        "heldout_samples": trained.heldout_samples,
        "heldout_loss_start": trained.heldout_loss_start,
        "heldout_loss_end": trained.heldout_loss_end,
        "accuracy_by_depth": trained.accuracy_by_depth,
        "conditional_acceptance_by_depth": trained.conditional_acceptance_by_depth,
        "simulated_acceptance_length_start": trained.simulated_acceptance_length_start,
        "simulated_acceptance_length_end": trained.simulated_acceptance_length_end,
        **draft_figures,
        "ttt_steps": len(trained.accuracy_by_depth or ()),
        "train_tokens_per_s": round(trained.tokens_per_s, 1),
        "data_wait_share": round(trained.data_wait_share, 4),
        "draft": trained.draft_folder,
        "seconds_by_stage": dict(seconds_by_stage),
    }


def summary_page(summary: Mapping[str, Any], file: Path, plots: Path | None) -> str:
    """Return the summary as a person reads it; `file` holds it as JSON."""
    s, seconds = summary, summary["seconds_by_stage"]
    made = {
        "cache": f"{s['samples']:,} samples, {s['tokens']:,} tokens, {s['bytes_per_token']:,.0f} bytes a token, "
        f"{s['cache_bytes'] / 1e6:,.0f} MB, verified",
        "training": f"{s['steps']} steps, best {s['best_step']}, {s['train_tokens_per_s']:,.0f} tokens/s, "
        f"{s['data_wait_share']:.1%} of the time waiting for data",
    }
    stages = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    left = {"time": f"{sum(seconds.values()):.0f} s: {stages}", "draft": str(s["draft"]), "summary": str(file)}
    left["plots"] = "none, as matplotlib is not installed" if plots is None else str(plots)
    blocks = ("", "== summary", field_table(made), "", *_heldout(s), "", *_decoded(s), "", field_table(left))
    return "\n".join(blocks)


def _heldout(s: Mapping[str, Any]) -> list[str]:
    rows = [
        ("loss", _number(s["heldout_loss_start"]), _number(s["heldout_loss_end"])),
        ("acceptance length", *(_number(s[f"simulated_acceptance_length_{end}"]) for end in ("start", "end"))),
        ("the same, bigram table", "", _number(s["bigram_acceptance_length"])),
    ]
    depths = {
        "accuracy by depth": _shares(s["accuracy_by_depth"]),
        "accepted if all before": _shares(s["conditional_acceptance_by_depth"]),
    }
    return [
        f"held out, {s['heldout_samples']} samples, simulated chain, K = {s['ttt_steps']}, greedy",
        text_table({" ": "left", "start": "right", "end": "right"}, rows, indent=2),
        field_table(depths, indent=2),
    ]


def _decoded(s: Mapping[str, Any]) -> list[str]:
    identical = s["greedy_identical"]
    replayed = f"replayed from the cache: {s['replayed_acceptance_length']:.3f}"
    figures = {
        "acceptance length": f"{_number(s['real_acceptance_length'])} tokens a target forward ({replayed})",
        "the same, bigram table": _number(s["bigram_real_acceptance_length"]),
        "the same, prompt lookup": _number(s["prompt_lookup_acceptance_length"]),
        "speed": f"{_number(s['real_speedup'])} times the target alone",
        "its text": "the same as the target alone" if identical is True else str(identical),
    }
    return [
        f"decoded with the target, {s['real_prompts']} held-out prompts, chain, K = {s['real_depth']}, greedy, "
        "one at a time",
        field_table(figures, indent=2),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _shares(shares: Sequence[float] | None) -> str:
    return " ".join(f"{share:.1%}" for share in shares or ())
