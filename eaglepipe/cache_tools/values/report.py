"""What a comparison of two caches' values says, as a table and as JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from eaglepipe.errors import printable
from eaglepipe.tables import text_table

_MUST_BE_EQUAL = ("input_ids", "loss_mask", "supervised")


@dataclass(frozen=True, kw_only=True)
class ValuesDiff:
    """Deviations between the samples that caches A and B share by id."""

    a: str
    b: str
    samples: int  # in both
    only_a: int
    only_b: int
    only: tuple[str, ...]
    encodings: tuple[str, ...]
    states: dict[str, dict[str, Any]]  # by column
    probabilities: dict[str, Any] | None
    draft_mass: dict[str, Any] | None
    equal: dict[str, dict[str, Any]]  # rows of columns that are compared for equality
    places: tuple[str, ...]  # the first rows that must be equal and are not
    not_compared: dict[str, str]  # why
    tolerance: float | None

    @property
    def beyond(self) -> tuple[str, ...]:
        """What is not within the tolerance; nothing without one."""
        if self.tolerance is None:
            return ()
        found = [f"{self.only_a + self.only_b} samples are in one cache only"] if self.only_a or self.only_b else []
        found += [f"{name} differ" for name in _MUST_BE_EQUAL if self.equal.get(name, {}).get("different")]
        largest = {name: values["max"] for name, values in self.states.items()}
        for name, values in (("target_probs", self.probabilities), ("draft_mass", self.draft_mass)):
            if values is not None:
                largest[name] = values["max"]
        if (top1 := self.equal.get("target_top1")) is not None:
            largest["target_top1 (share of rows)"] = 1 - top1["share_equal"]
        found += [f"{name}: {value:.3g}" for name, value in largest.items() if not value <= self.tolerance]
        return tuple(found)

    @property
    def within_tolerance(self) -> bool:
        return not self.beyond

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "beyond": list(self.beyond)}

    def table(self) -> str:
        """Return a table of states, one of probabilities and one of columns that must be equal."""
        lines = [f"A  {self.a} ({self.encodings[0]})", f"B  {self.b} ({self.encodings[1]})", self._samples(), ""]
        if self.states:
            lines += [self._states(), ""]
        numbers = [
            (name, values)
            for name, values in (("target_probs", self.probabilities), ("draft_mass", self.draft_mass))
            if values is not None
        ]
        if numbers:
            rows = [
                [name, *(_number(values.get(key)) for key in ("max", "kl_max", "kl_mean")), str(values["rows"])]
                for name, values in numbers
            ]
            columns = ("absolute deviation", "max", "max KL", "mean KL", "rows")
            lines += [text_table({name: "left" if not i else "right" for i, name in enumerate(columns)}, rows), ""]
        rows = [
            [name, f"{values['different']:,}", f"{values['rows']:,}", f"{values['share_equal']:.4%}"]
            for name, values in self.equal.items()
        ]
        lines.append(
            text_table({"equality": "left", "different": "right", "of": "right", "share equal": "right"}, rows)
        )
        lines += [f"  first differences: {printable(', '.join(self.places))}"] if self.places else []
        lines += [f"not compared: {name}: {reason}" for name, reason in self.not_compared.items()]
        lines += [f"beyond {self.tolerance:g}: {what}" for what in self.beyond]
        return "\n".join(lines)

    def _samples(self) -> str:
        only = f"; {self.only_a} only in A, {self.only_b} only in B" if self.only_a or self.only_b else ""
        named = f" ({printable(', '.join(self.only))})" if self.only else ""
        return f"{self.samples} samples in both{only}{named}"

    def _states(self) -> str:
        keys = ("max", "mean", "rms", "max_absolute")
        rows = [
            [name, *(_number(values[key]) for key in keys), f"{values['rows']:,}"]
            for name, values in self.states.items()
        ]
        columns = ("relative error of a row", "max", "mean", "rms", "max absolute", "rows")
        return text_table({name: "left" if not i else "right" for i, name in enumerate(columns)}, rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
