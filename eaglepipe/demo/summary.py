"""The demo's last page: what was made, what it cost, how good the draft is."""

from pathlib import Path
from typing import Any


def summary_text(summary: dict[str, Any], file: Path) -> str:
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
        f"time         {sum(seconds.values()):.0f} s: {stages}",
        f"draft        {summary['draft']}",
        f"summary      {file}",
    ]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "       -" if value is None else f"{value:8.3f}"
