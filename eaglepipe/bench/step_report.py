"""The report of `bench step`, for programs and for people."""

from dataclasses import asdict, dataclass
from typing import Any

from eaglepipe.bench.peers.comparison import Comparison
from eaglepipe.tables import field_table, text_table

_WORST = {
    "ratio": min,
    "peak_memory_ratio": max,
    "ratio_to_matmuls": max,
    "data_wait": max,
    "peak_bytes": max,
    "reference_peak_bytes": max,
}
"""Choice of the one number that stands for all workloads."""


@dataclass(frozen=True, kw_only=True)
class WorkloadReport:
    """One workload: seconds are medians of whole passes, FLOP are those of the compact path's products."""

    name: str
    tokens: int
    supervised_tokens: int
    padding: float
    reference_padding: float
    seconds: float
    reference_seconds: float
    linear_seconds: float  # the products of projections, MLP and head alone
    attention_seconds: float  # attention's products alone
    flops: int
    device_matmul_rate: float  # FLOP/s of one large square product
    peak_bytes: int
    reference_peak_bytes: int
    data_wait: float
    loss_difference: float  # relative, between the two paths' summed losses
    comparison: Comparison | None = None  # with the steps of peers

    def to_json(self) -> dict[str, Any]:
        """Return the fields with rates and ratios; `ratio` is supervised tokens a second over the reference's."""
        matmul_seconds = self.linear_seconds + self.attention_seconds
        return {
            **asdict(self),
            "comparison": None if self.comparison is None else self.comparison.to_json(),
            "tokens_per_s": self.tokens / self.seconds,
            "supervised_tokens_per_s": self.supervised_tokens / self.seconds,
            "reference_tokens_per_s": self.tokens / self.reference_seconds,
            "reference_supervised_tokens_per_s": self.supervised_tokens / self.reference_seconds,
            "ratio": self.reference_seconds / self.seconds,
            "peak_memory_ratio": self.peak_bytes / max(1, self.reference_peak_bytes),
            "matmul_seconds": matmul_seconds,
            "ratio_to_matmuls": self.seconds / matmul_seconds,
            "ratio_to_linear_matmuls": self.seconds / self.linear_seconds,
            "flops_per_s": self.flops / self.seconds,
            "share_of_matmul_rate": self.flops / self.seconds / self.device_matmul_rate,
        }

    def table(self) -> str:
        table = _workload_table(self.to_json())
        return table if self.comparison is None else f"{table}\n\n{self.comparison.table()}"


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """All workloads of a preset."""

    preset: str
    device: str
    dtype: str
    threads: int
    rounds: int
    workloads: tuple[WorkloadReport, ...]

    def to_json(self) -> dict[str, Any]:
        """Return totals over the workloads; of a figure that has no total, the worst."""
        works = [workload.to_json() for workload in self.workloads]
        total = {name: sum(work[name] for work in works) for name in ("tokens", "supervised_tokens", "flops")}
        seconds, reference_seconds = (sum(work[name] for work in works) for name in ("seconds", "reference_seconds"))
        mean_matmul_rate = sum(work["device_matmul_rate"] for work in works) / len(works)
        return {
            **asdict(self),
            "tokens_per_s": total["tokens"] / seconds,
            "supervised_tokens_per_s": total["supervised_tokens"] / seconds,
            "reference_supervised_tokens_per_s": total["supervised_tokens"] / reference_seconds,
            "flops_per_s": total["flops"] / seconds,
            "share_of_matmul_rate": total["flops"] / seconds / mean_matmul_rate,
            **{name: worst(work[name] for work in works) for name, worst in _WORST.items()},
            "workloads": works,
        }

    def table(self) -> str:
        device = self.device if self.device != "cpu" else f"CPU, {self.threads} thread(s)"
        title = f"bench step {self.preset}: {device}, {self.dtype}, medians of {self.rounds} rounds"
        return "\n\n".join([title, *(workload.table() for workload in self.workloads)])


def _workload_table(work: dict[str, Any]) -> str:
    rows = [
        _row("supervised tokens/s", work["supervised_tokens_per_s"], work["reference_supervised_tokens_per_s"]),
        _row("tokens/s", work["tokens_per_s"], work["reference_tokens_per_s"]),
        _row("seconds a pass", work["seconds"], work["reference_seconds"], " s"),
        ("padding", f"{work['padding']:.1%}", f"{work['reference_padding']:.1%}", ""),
        _row("peak memory", work["peak_bytes"] / 1e6, work["reference_peak_bytes"] / 1e6, " MB"),
    ]
    remarks = {
        "arithmetic": f"{work['flops_per_s'] / 1e9:,.1f} GFLOP/s, {work['share_of_matmul_rate']:.0%} of the "
        f"{work['device_matmul_rate'] / 1e9:,.1f} of one large matrix product",
        "its products alone": f"{work['matmul_seconds']:.3g} s: {work['ratio_to_matmuls']:.2f} times that "
        f"({work['ratio_to_linear_matmuls']:.2f} without attention's)",
        "waiting for data": f"{work['data_wait']:.2%} of the time of real steps",
        "losses apart by": f"{work['loss_difference']:.1e} (relative)",
    }
    title = f"{work['name']}: {work['tokens']:,} tokens, {work['supervised_tokens']:,} of them supervised"
    table = text_table({"": "left", "this path": "right", "reference": "right", "times": "right"}, rows, indent=2)
    return f"{title}\n{table}\n{field_table(remarks, indent=2)}"


def _row(name: str, value: float, reference: float, unit: str = "") -> tuple[str, str, str, str]:
    return name, _number(value) + unit, _number(reference) + unit, f"{value / reference:.2f}" if reference else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"
