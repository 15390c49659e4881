"""Samples that the target or a codec lost to NaN, Inf or overflow, and prompts without an answer of use.

They are counted by cause, and faults are never too many in silence.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from eaglepipe.cache.published import published_sidecars
from eaglepipe.cache.sidecar import CODEC_OVERFLOW, EMPTY_ANSWER, REFUSED, UNANSWERED, UNFINISHED, RefusedSample
from eaglepipe.errors import DataError
from eaglepipe.precompute.inputs import Stage1Inputs
from eaglepipe.precompute.plan import PrecomputePlan
from eaglepipe.tables import text_table

_FAULTS = frozenset({REFUSED, CODEC_OVERFLOW, EMPTY_ANSWER, UNANSWERED})
"""Causes that data.max_drop_fraction limits; the others follow from the recipe's lengths."""


@dataclass(frozen=True, kw_only=True)
class Lost:
    """Lost samples of the published shards."""

    samples: Counter[str]  # by cause
    tokens: Counter[str]  # by cause
    first: dict[str, str]  # of each cause, id and reason
    total_samples: int  # of the corpus
    total_tokens: int  # of the corpus

    @property
    def faults(self) -> int:
        """Samples lost to faults."""
        return sum(self.samples[cause] for cause in _FAULTS)

    def table(self) -> str:
        """Return a line for each cause: samples and tokens with their shares, and the first sample."""
        rows = [
            (
                cause,
                f"{count:,} ({count / self.total_samples:.2%})",
                f"{self.tokens[cause]:,} ({self.tokens[cause] / self.total_tokens:.2%})",
                self.first[cause],
            )
            for cause, count in self.samples.most_common()
        ]
        return text_table({"cause": "left", "samples": "right", "tokens": "right", "first": "left"}, rows, indent=2)


def read_lost(plan: PrecomputePlan) -> Lost:
    """Read the lost samples of all shards published so far."""
    refused = _refused(plan)
    lengths = plan.layout.tokens.lengths_of({sample.sample_id for sample in refused}) if refused else {}
    samples, tokens, first = Counter[str](), Counter[str](), dict[str, str]()
    for sample in refused:
        samples[sample.cause] += 1
        tokens[sample.cause] += lengths.get(sample.sample_id, 0)
        first.setdefault(sample.cause, f"{sample.sample_id}: {sample.reason}")
    return Lost(
        samples=samples,
        tokens=tokens,
        first=first,
        total_samples=plan.document.samples,
        total_tokens=plan.document.tokens,
    )


def check_lost(inputs: Stage1Inputs, plan: PrecomputePlan, report: Callable[[str], None] | None) -> None:
    """Report the samples lost so far, if there are any; without `report`, only raise.

    Raises:
        DataError: their share of the corpus is above data.max_drop_fraction; the published shards stay.
    """
    lost = read_lost(plan)
    count, allowed = lost.samples.total(), inputs.recipe.data.max_drop_fraction
    if count == 0:
        return
    share = f"{count:,} of {lost.total_samples:,} samples ({count / lost.total_samples:.2%})"
    causes = "\n".join([lost.table(), *(f"  {hint}" for hint in _hints(lost))])
    if lost.faults == lost.total_samples:
        raise DataError(f"{plan.folder}: no finite result for any sample:\n{causes}")
    if count == lost.total_samples:
        raise DataError(f"{plan.folder}: no prompt has an answer of use:\n{causes}")
    if lost.faults / lost.total_samples > allowed:
        raise DataError(
            f"{plan.folder}: {share} are lost, and data.max_drop_fraction allows {allowed:.2%}:\n{causes}\n"
            "the computed shards stay: with a larger data.max_drop_fraction the same command goes on without these "
            "samples"
        )
    if report is not None:
        what = "have no finite states" if lost.samples.keys() <= {REFUSED, CODEC_OVERFLOW} else "are left out"
        report(f"lost      {share} {what}\n{causes}")


def _refused(plan: PrecomputePlan) -> list[RefusedSample]:
    return [sample for sidecar in published_sidecars(plan.folder, plan.document) for sample in sidecar.refused]


def _hints(lost: Lost) -> list[str]:
    hints = []
    if (reason := lost.first.get(REFUSED)) is not None:
        advice = (
            "float16 ends at 65,504, so set target.dtype to bfloat16 or float32"
            if "(float16)" in reason
            else "its weights are at fault, or its code"
        )
        hints.append(f"{REFUSED}: the target itself gave NaN or Inf; {advice}")
    if UNFINISHED in lost.first:
        hints.append(f"{UNFINISHED}: these answers have no end; raise data.generate.max_new_tokens to keep longer ones")
    if CODEC_OVERFLOW in lost.first:
        hints.append(
            f"{CODEC_OVERFLOW}: the target's numbers are finite, and beyond the range of the codec; choose a wider "
            "one, bf16 or fp32"
        )
    return hints
