"""The report of `bench step`, for programs and for people."""

from dataclasses import asdict, dataclass
from typing import Any

from eaglepipe.tables import field_table, text_table


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

    @property
    def ratio(self) -> float:
        """Supervised tokens a second over the reference's."""
        return self.reference_seconds / self.seconds

    @property
    def matmul_seconds(self) -> float:
        """Time of the path's products alone: projections, MLP, head, and attention's own."""
        return self.linear_seconds + self.attention_seconds

    @property
    def peak_memory_ratio(self) -> float:
        return self.peak_bytes / max(1, self.reference_peak_bytes)

    @property
    def ratio_to_matmuls(self) -> float:
        """Time over that of the path's products alone."""
        return self.seconds / self.matmul_seconds

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "tokens_per_s": self.tokens / self.seconds,
            "supervised_tokens_per_s": self.supervised_tokens / self.seconds,
            "reference_tokens_per_s": self.tokens / self.reference_seconds,
            "reference_supervised_tokens_per_s": self.supervised_tokens / self.reference_seconds,
            "ratio": self.ratio,
            "peak_memory_ratio": self.peak_memory_ratio,
            "matmul_seconds": self.matmul_seconds,
            "ratio_to_matmuls": self.ratio_to_matmuls,
            "ratio_to_linear_matmuls": self.seconds / self.linear_seconds,
            "flops_per_s": self.flops / self.seconds,
            "share_of_matmul_rate": self.flops / self.seconds / self.device_matmul_rate,
        }


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
        """Totals over the workloads; where one number must stand for all of them, the worst one."""
        works = self.workloads
        tokens, supervised = (sum(getattr(w, name) for w in works) for name in ("tokens", "supervised_tokens"))
        seconds, reference_seconds = (sum(getattr(w, name) for w in works) for name in ("seconds", "reference_seconds"))
        flops_per_s = sum(w.flops for w in works) / seconds
        return {
            "preset": self.preset,
            "device": self.device,
            "dtype": self.dtype,
            "threads": self.threads,
            "rounds": self.rounds,
            "tokens_per_s": tokens / seconds,
            "supervised_tokens_per_s": supervised / seconds,
            "reference_supervised_tokens_per_s": supervised / reference_seconds,
            "ratio": min(w.ratio for w in works),
            "peak_memory_ratio": max(w.peak_memory_ratio for w in works),
            "ratio_to_matmuls": max(w.ratio_to_matmuls for w in works),
            "data_wait": max(w.data_wait for w in works),
            "flops_per_s": flops_per_s,
            "share_of_matmul_rate": flops_per_s / (sum(w.device_matmul_rate for w in works) / len(works)),
            "peak_bytes": max(w.peak_bytes for w in works),
            "reference_peak_bytes": max(w.reference_peak_bytes for w in works),
            "workloads": [w.to_json() for w in works],
        }

    def table(self) -> str:
        device = self.device if self.device != "cpu" else f"CPU, {self.threads} thread(s)"
        title = f"bench step {self.preset}: {device}, {self.dtype}, medians of {self.rounds} rounds"
        return "\n\n".join([title, *(_workload_table(workload) for workload in self.workloads)])


def _workload_table(work: WorkloadReport) -> str:
    fields = work.to_json()
    rows = [
        _row("supervised tokens/s", fields["supervised_tokens_per_s"], fields["reference_supervised_tokens_per_s"]),
        _row("tokens/s", fields["tokens_per_s"], fields["reference_tokens_per_s"]),
        _row("seconds a pass", work.seconds, work.reference_seconds, " s"),
        ("padding", f"{work.padding:.1%}", f"{work.reference_padding:.1%}", ""),
        _row("peak memory", work.peak_bytes / 1e6, work.reference_peak_bytes / 1e6, " MB"),
    ]
    remarks = {
        "arithmetic": f"{fields['flops_per_s'] / 1e9:,.1f} GFLOP/s, {fields['share_of_matmul_rate']:.0%} of the "
        f"{work.device_matmul_rate / 1e9:,.1f} of one large matrix product",
        "its products alone": f"{work.matmul_seconds:.3g} s: {work.ratio_to_matmuls:.2f} times that "
        f"({fields['ratio_to_linear_matmuls']:.2f} without attention's)",
        "waiting for data": f"{work.data_wait:.2%} of the time of real steps",
        "losses apart by": f"{work.loss_difference:.1e} (relative)",
    }
    table = text_table({"": "left", "this path": "right", "reference": "right", "times": "right"}, rows, indent=2)
    return "\n".join(
        [
            f"{work.name}: {work.tokens:,} tokens, {work.supervised_tokens:,} of them supervised",
            table,
            field_table(remarks, indent=2),
        ]
    )


def _row(name: str, value: float, reference: float, unit: str = "") -> tuple[str, str, str, str]:
    return name, _number(value) + unit, _number(reference) + unit, f"{value / reference:.2f}" if reference else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"
