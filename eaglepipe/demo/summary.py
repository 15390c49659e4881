"""The demo's last page: what was made, what it cost, how good the draft is."""

from pathlib import Path
from typing import Any


def summary_text(summary: dict[str, Any], file: Path, page: Path | None) -> str:
    """The summary, as a person reads it; `file` holds it as JSON."""
    depth = summary["ttt_steps"]
    accuracy = " ".join(f"{share:5.1%}" for share in summary["accuracy_by_depth"] or ())
    conditional = " ".join(f"{share:5.1%}" for share in summary["conditional_acceptance_by_depth"] or ())
    seconds = summary["seconds_by_stage"]
    stages = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    lines = [
        "",
        "== summary",
        f"cache        {summary['samples']:,} samples, {summary['tokens']:,} tokens, "
        f"{summary['bytes_per_token']:,.0f} bytes a token, {summary['cache_bytes'] / 1e6:,.0f} MB, verified",
        f"training     {summary['steps']} steps, best {summary['best_step']}, "
        f"{summary['train_tokens_per_s']:,.0f} tokens/s, {summary['data_wait_share']:.1%} of the time waiting for data",
        "",
        f"held out, {summary['heldout_samples']} samples, simulated chain, K = {depth}, greedy",
        f"                          {'start':>8} {'end':>8}",
        f"  loss                    {_number(summary['heldout_loss_start'])} {_number(summary['heldout_loss_end'])}",
        f"  acceptance length       {_number(summary['simulated_acceptance_length_start'])} "
        f"{_number(summary['simulated_acceptance_length_end'])}",
        f"  the same, bigram table           {_number(summary['bigram_acceptance_length'])}",
        f"  accuracy by depth       {accuracy}",
        f"  accepted if all before  {conditional}",
        "",
        *_real_lines(summary),
        "",
        f"time         {sum(seconds.values()):.0f} s: {stages}",
        f"draft        {summary['draft']}",
        f"summary      {file}",
        *([] if page is None else [f"plots        {page}"]),
    ]
    return "\n".join(lines)


def _real_lines(summary: dict[str, Any]) -> list[str]:
    identical = summary["greedy_identical"]
    speedup = summary["real_speedup"]
    return [
        f"decoded with the target, {summary['real_prompts']} held-out prompts, chain, K = {summary['real_depth']}, "
        "greedy, one at a time",
        f"  acceptance length       {_number(summary['real_acceptance_length'])} tokens a target forward "
        f"(replayed from the cache: {summary['replayed_acceptance_length']:.3f})",
        f"  the same, bigram table  {_number(summary['bigram_real_acceptance_length'])}",
        f"  the same, prompt lookup {_number(summary['prompt_lookup_acceptance_length'])}",
        f"  speed                   {_number(speedup)} times the target alone",
        f"  its text                {'the same as the target alone' if identical is True else identical}",
    ]


def _number(value: float | None) -> str:
    return "       -" if value is None else f"{value:8.3f}"
