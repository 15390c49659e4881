"""The report of `bench step --objective dflash`, for programs and for people."""

from dataclasses import dataclass
from typing import Any

from eaglepipe.bench.peers.comparison import Comparison


@dataclass(frozen=True, kw_only=True)
class DflashWorkload:
    """A workload, and the passes over it."""

    name: str
    tokens: int
    supervised_tokens: int
    guesses: int
    comparison: Comparison

    def to_json(self) -> dict[str, Any]:
        own = {
            "name": self.name,
            "tokens": self.tokens,
            "supervised_tokens": self.supervised_tokens,
        }
        return {**own, "guesses": self.guesses, "comparison": self.comparison.to_json()}

    def table(self) -> str:
        title = (
            f"{self.name}: {self.tokens:,} tokens, {self.supervised_tokens:,} of them supervised, "
            f"{self.guesses:,} guesses in the loss"
        )
        return f"{title}\n{self.comparison.table()}"


@dataclass(frozen=True, kw_only=True)
class DflashStepReport:
    """All workloads of a preset."""

    preset: str
    device: str
    dtype: str
    threads: int
    rounds: int
    workloads: tuple[DflashWorkload, ...]

    def to_json(self) -> dict[str, Any]:
        names = ("preset", "device", "dtype", "threads", "rounds")
        own = {name: getattr(self, name) for name in names}
        return {
            **own,
            "objective": "dflash",
            "workloads": [workload.to_json() for workload in self.workloads],
        }

    def table(self) -> str:
        device = self.device if self.device != "cpu" else f"CPU, {self.threads} thread(s)"
        title = f"bench step {self.preset}, dflash: {device}, {self.dtype}, medians of {self.rounds} rounds"
        return "\n\n".join([title, *(workload.table() for workload in self.workloads)])
