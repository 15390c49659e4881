"""Training steps that other packages make of the same batches, measured in turn with ours in one process."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from textwrap import fill
from typing import Any, Literal, Protocol

import torch

from eaglepipe.bench.timing import Spent
from eaglepipe.tables import text_table

OURS = "this path"
_WIDTH = 100
_COLUMNS: dict[str, Literal["left", "right"]] = {
    "target's head included": "left",
    "wall": "right",
    "CPU": "right",
    "tokens/s": "right",
    "wall times": "right",
    "CPU times": "right",
    "losses apart by": "right",
}

PassFn = Callable[[], tuple[Spent, torch.Tensor]]
"""One pass over all batches: what it took, and loss sums, float64 [K], that are equal if the losses are."""


class Peer(Protocol):
    """The training step of a package, set up on the batches of a workload."""

    @property
    def note(self) -> str:
        """How it runs, the package's name first."""
        ...

    def run_all(self) -> tuple[Spent, torch.Tensor]:
        """Run one pass, as a `PassFn` does."""
        ...


@dataclass(frozen=True, kw_only=True)
class PeerRow:
    """A pass of one implementation: forward, backward and the target's head."""

    name: str
    seconds: float
    cpu_seconds: float  # of all threads
    loss_difference: float  # relative, between its summed losses and ours


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Medians of passes over the same samples, ours first, and how the peers were set up."""

    supervised_tokens: int
    rows: tuple[PeerRow, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the fields with rates, and each row's time over ours as `ratio` and `cpu_ratio`."""
        ours = self.rows[0]
        rows = [
            {
                **asdict(row),
                "supervised_tokens_per_s": self.supervised_tokens / row.seconds,
                "ratio": row.seconds / ours.seconds,
                "cpu_ratio": row.cpu_seconds / ours.cpu_seconds,
            }
            for row in self.rows
        ]
        return {"rows": rows, "notes": list(self.notes)}

    def table(self) -> str:
        """Return a table of one row an implementation."""
        rows = [
            (
                str(row["name"]),
                f"{row['seconds']:.3g} s",
                f"{row['cpu_seconds']:.3g} s",
                f"{row['supervised_tokens_per_s']:,.0f}",
                f"{row['ratio']:.2f}",
                f"{row['cpu_ratio']:.2f}",
                "" if row["name"] == OURS else f"{row['loss_difference']:.1e}",
            )
            for row in self.to_json()["rows"]
        ]
        table = text_table(_COLUMNS, rows, indent=2)
        notes = (fill(note, width=_WIDTH, initial_indent="  ", subsequent_indent="    ") for note in self.notes)
        return "\n".join([table, *notes])


def compare(passes: Mapping[str, PassFn], rounds: int, *, supervised_tokens: int, notes: Sequence[str]) -> Comparison:
    """Run every pass in turn, in several rounds, the second backwards; `passes` holds `OURS`."""
    spent: dict[str, list[Spent]] = {name: [] for name in passes}
    losses: dict[str, torch.Tensor] = {}
    for number in range(rounds):
        for name in list(passes)[:: -1 if number % 2 else 1]:
            one, losses[name] = passes[name]()
            spent[name].append(one)
    own = losses[OURS].sum()
    rows = tuple(
        PeerRow(
            name=name,
            seconds=statistics.median(one.wall for one in spent[name]),
            cpu_seconds=statistics.median(one.cpu for one in spent[name]),
            loss_difference=(losses[name].sum() / own - 1).abs().item(),
        )
        for name in passes
    )
    return Comparison(supervised_tokens=supervised_tokens, rows=rows, notes=tuple(notes))
