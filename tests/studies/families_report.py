"""What `study families` found, for programs and for people."""

from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from tests.studies.spread import Spread

FLAT = 0.9
"""The share of its conditional acceptance that a draft keeps down to the last depth, from which it holds its depth."""


@dataclass(frozen=True, kw_only=True)
class FamilyRun:
    """A family's draft of one seed on the held-out samples, after its last step; lists are by depth."""

    seed: int
    acceptance_length: float  # simulated
    round_length: float | None = None  # tokens that a round adds in replayed answers
    accuracy_by_depth: tuple[float, ...]
    conditional_acceptance_by_depth: tuple[float, ...]  # draft k+1 matches, given that those before it did
    heldout_samples: int
    seconds: float  # of training steps


@dataclass(frozen=True, kw_only=True)
class FamilyResult:
    """A family over all seeds."""

    name: str
    what: str
    settings: tuple[str, ...]
    steps: int
    runs: tuple[FamilyRun, ...]

    @property
    def acceptance_length(self) -> Spread:
        return Spread.of([run.acceptance_length for run in self.runs])

    @property
    def round_length(self) -> Spread | None:
        lengths = [run.round_length for run in self.runs]
        return Spread.of([length for length in lengths if length is not None]) if None not in lengths else None

    @property
    def conditional_acceptance_by_depth(self) -> tuple[float, ...]:
        """Means of the runs'."""
        return tuple(map(fmean, zip(*(run.conditional_acceptance_by_depth for run in self.runs), strict=True)))

    @property
    def seconds(self) -> float:
        return fmean(run.seconds for run in self.runs)

    def longer_than(self, other: "FamilyResult") -> Spread:
        """By how much more this family is accepted, seed by seed."""
        pairs = zip(self.runs, other.runs, strict=True)
        return Spread.of([ours.acceptance_length - theirs.acceptance_length for ours, theirs in pairs])

    @property
    def flatness(self) -> float:
        """Conditional acceptance at the last depth over that at the second, the first that reads the draft's state."""
        rates = self.conditional_acceptance_by_depth
        return rates[-1] / rates[1] if len(rates) > 1 and rates[1] > 0 else 0.0

    @property
    def kept(self) -> float:
        """The lowest at any deeper depth over that at the first.

        The lowest, since a draft that falls at once leaves too few slots to tell how it does further down.
        """
        first, *deeper = self.conditional_acceptance_by_depth
        return min(deeper) / first if deeper and first > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class FamiliesReport:
    """All families, trained for as many steps or as long from one cache."""

    budget: str
    seeds: tuple[int, ...]
    cache: str
    families: tuple[FamilyResult, ...]

    def to_json(self) -> dict[str, Any]:
        rows = [
            {
                **asdict(family),
                "acceptance_length": asdict(family.acceptance_length),
                "round_length": None if family.round_length is None else asdict(family.round_length),
                "conditional_acceptance_by_depth": family.conditional_acceptance_by_depth,
                "flatness": family.flatness,
                "kept": family.kept,
            }
            for family in self.families
        ]
        return {**asdict(self), "families": rows, "expectations": self.expectations()}

    def expectations(self) -> dict[str, bool]:
        """What the families should show, over the mean of the seeds and as far as the rows for it are there.

        One family beats another by more than two standard errors, or just by more where one seed is all there is.
        """
        by_name = {family.name: family for family in self.families}
        found = {}
        if {"eagle3", "eagle3-k1"} <= by_name.keys():
            found["trained depth is flat"] = by_name["eagle3"].flatness >= FLAT
            found["untrained depth decays"] = by_name["eagle3-k1"].kept < FLAT
        for form, what in (("eagle3", "EAGLE-3"), ("eagle3.1", "EAGLE-3.1")):
            for single, other in (("last-aux", "the last of them"), ("top-layer", "the target's last layer")):
                if {form, f"{form}-{single}"} <= by_name.keys():
                    longer = by_name[form].longer_than(by_name[f"{form}-{single}"])
                    claim = f"{what}: three aux layers beat {other} alone, by {longer.show()}"
                    found[claim] = longer.mean > 2 * (longer.standard_error or 0.0)
        return found

    def table(self) -> str:
        depth = max(len(family.conditional_acceptance_by_depth) for family in self.families)
        first, rounds = self.families[0], any(family.round_length for family in self.families)
        lines = [
            f"{self.budget} each, seeds {', '.join(map(str, self.seeds))}, from {self.cache}",
            f"held out, {first.runs[0].heldout_samples} samples: acceptance length (simulated chain, greedy; mean and "
            "standard deviation),",
            *(["the same of rounds replayed as an engine makes them,"] if rounds else []),
            "and acceptance at each depth if all before it were accepted",
            "",
            f"{'family':25}{'length':>14}{'rounds':>14}"[: 53 if rounds else 39]
            + f"  {''.join(f'{k + 1:>5}' for k in range(depth))}{'low/1st':>9}{'last/2nd':>9}{'steps':>7}{'train':>8}",
        ]
        for family in self.families:
            rates = "".join(f"{rate:>5.0%}" for rate in family.conditional_acceptance_by_depth)
            of_rounds = f"{'' if family.round_length is None else family.round_length.show():>14}" if rounds else ""
            lines.append(
                f"{family.what:25}{family.acceptance_length.show():>14}{of_rounds}  {rates:{5 * depth}}"
                f"{family.kept:>9.2f}{family.flatness:>9.2f}{family.steps:>7,}{family.seconds:>6.0f} s"
            )
        verdicts = [f"{'yes' if holds else 'NO':>3}  {what}" for what, holds in self.expectations().items()]
        return "\n".join([*lines, "", *verdicts] if verdicts else lines)
