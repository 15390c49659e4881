"""The report of `eaglepipe estimate` as text."""

from typing import Any

from eaglepipe.progress import format_seconds

_ENTRIES = {
    "limit": "entries: the most that cache.max_entries allows; --measure asks the target for the mean",
    "given": "entries: as given",
    "measured": "entries: measured with the target on the corpus' first samples",
}


def cost_table(report: dict[str, Any]) -> str:
    """One line an encoding, then its columns, then what was assumed."""
    lines = [
        f"{report['samples']:,} samples, {report['tokens']:,} tokens, "
        f"{report['supervised_tokens']:,} of them supervised",
        f"{format_seconds(report['forward_seconds'])} of forward on one device, "
        f"{report['free_bytes'] / 1e9:,.1f} GB free",
        "",
        f"  {'profile':9}{'supervision':13}{'stored as':10}{'aux':6}"
        + "".join(f"{title:>11}" for title in ("entries", "B/token", "total GB", "hours", "pays after")),
    ]
    lines += [_line(cost, report["free_bytes"]) for cost in report["encodings"]]
    columns = list(dict.fromkeys(name for cost in report["encodings"] for name in cost["by_column"]))
    lines += ["", f"  {'bytes a token':22}" + "".join(f"{cost['name']:>10}" for cost in report["encodings"])]
    for name in columns:
        sizes = [cost["by_column"].get(name) for cost in report["encodings"]]
        lines.append(f"  {name:22}" + "".join(f"{'-' if size is None else f'{size:,.1f}':>10}" for size in sizes))
    return "\n".join([*lines, "", *_assumptions(report)])


def _line(cost: dict[str, Any], free: int) -> str:
    entries = "-" if cost["entries"] is None else f"{cost['entries']:,.1f}"
    pays = "never" if cost["epochs_to_pay"] is None else f"{cost['epochs_to_pay']} epochs"
    room = "" if cost["total_bytes"] <= free else "  does not fit"
    return (
        f"{'>' if cost['chosen'] else ' '} {cost['name']:9}{cost['supervision']:13}{cost['supervision_codec']:10}"
        f"{cost['aux_codec']:6}{entries:>11}{cost['bytes_per_token']:>11,.1f}{cost['total_bytes'] / 1e9:>11,.3f}"
        f"{cost['precompute_seconds'] / 3600:>11,.2f}{pays:>11}{room}"
    )


def _assumptions(report: dict[str, Any]) -> list[str]:
    disk = report["disk_bytes_per_second"] / 1e9
    return [
        f"> the recipe's own. {_ENTRIES[report['entries_from']]}.",
        "hours: precompute on one device, a forward at half the rate of matrix products that was measured just now,",
        f"  writing overlapped, a disk of {disk:g} GB/s (--disk-rate).",
        "pays after: epochs, over all experiments, until precompute and reading the cache each time take less than the",
        "  target's forward each time; reading is counted in full, as if it were not overlapped with training.",
    ]
