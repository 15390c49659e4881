"""The report of `eaglepipe estimate` as text."""

from typing import Any

from eaglepipe.progress import format_seconds
from eaglepipe.tables import Justify, text_table

_COLUMNS: dict[str, Justify] = {
    **dict.fromkeys(("", "profile", "supervision", "stored as", "aux"), "left"),
    **dict.fromkeys(("entries", "B/token", "total GB", "hours", "pays after"), "right"),
    " ": "left",
}

_ENTRIES = {
    "limit": "entries: the most that cache.max_entries or cache.draws allows; --measure asks the target for the mean",
    "given": "entries: as given",
    "measured": "entries: measured with the target on the corpus' first samples",
}


def cost_table(report: dict[str, Any]) -> str:
    """Return one line an encoding, then its columns, then the assumptions."""
    encodings, free = report["encodings"], report["free_bytes"]
    names = dict.fromkeys(name for cost in encodings for name in cost["by_column"])
    sizes = [[name, *(_number(cost["by_column"].get(name)) for cost in encodings)] for name in names]
    profiles: dict[str, Justify] = {cost["name"]: "right" for cost in encodings}
    disk = report["disk_bytes_per_second"] / 1e9
    lines = [
        f"{report['samples']:,} samples, {report['tokens']:,} tokens, "
        f"{report['supervised_tokens']:,} of them supervised",
        f"{format_seconds(report['forward_seconds'])} of forward on one device, {free / 1e9:,.1f} GB free",
        "",
        text_table(_COLUMNS, [_cells(cost, free) for cost in encodings]),
        "",
        text_table({"bytes a token": "left", **profiles}, sizes, indent=2),
        "",
        f"> the recipe's own. {_ENTRIES[report['entries_from']]}.",
        "hours: precompute on one device, a forward at half the rate of matrix products that was measured just now,",
        f"  writing overlapped, a disk of {disk:g} GB/s (--disk-rate).",
        "pays after: epochs, over all experiments, until precompute and reading the cache each time take less than the",
        "  target's forward each time; reading is counted in full, as if it were not overlapped with training.",
    ]
    return "\n".join(lines)


def _cells(cost: dict[str, Any], free: int) -> list[str]:
    return [
        ">" if cost["chosen"] else "",
        *(cost[name] for name in ("name", "supervision", "supervision_codec", "aux_codec")),
        _number(cost["entries"]),
        _number(cost["bytes_per_token"]),
        f"{cost['total_bytes'] / 1e9:,.3f}",
        f"{cost['precompute_seconds'] / 3600:,.2f}",
        "never" if cost["epochs_to_pay"] is None else f"{cost['epochs_to_pay']} epochs",
        "" if cost["total_bytes"] <= free else "does not fit",
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"
