"""What a run of the fuzzers found, as text."""

from collections import Counter
from collections.abc import Sequence

from tests.fuzz.runner import SUBJECTS, Step


def failures_text(steps: Sequence[Step], seed: int) -> str:
    """One paragraph a kind of fault: how often, and how to see its first case again."""
    failures = [(step, fault) for step in steps for fault in step.faults]
    kinds = Counter(_kind(fault) for _, fault in failures)
    first = {_kind(fault): (step, fault) for step, fault in reversed(failures)}
    return "\n".join(
        f"{kinds[kind]:4} x {fault[:300]}\n       {_again(step, seed)}\n       {' '.join(step.arguments)[:300]}"
        for kind, (step, fault) in sorted(first.items(), key=lambda item: -kinds[item[0]])
    )


def table_text(steps: Sequence[Step]) -> str:
    """One line a subject: cases, commands, exits by code, slowest, peak memory, failures."""
    lines = [f"{'subject':15}{'cases':>6}{'commands':>10}{'slowest s':>11}{'peak MB':>9}{'failures':>10}  exits"]
    names = [subject for subject in SUBJECTS if any(step.subject == subject for step in steps)]
    for name in [*names, "all"]:
        own = [step for step in steps if name in (step.subject, "all")]
        codes = sorted(Counter(step.code for step in own).items())
        lines.append(
            f"{name:15}{len({(step.subject, step.number) for step in own}):6}{len(own):10}"
            f"{max(step.seconds for step in own):11.1f}{max(step.peak_bytes for step in own) / 1e6:9,.0f}"
            f"{sum(bool(step.faults) for step in own):10}  {'  '.join(f'{code}: {count}' for code, count in codes)}"
        )
    return "\n".join(lines)


def _kind(fault: str) -> str:
    """The fault without what differs from case to case: its place if it is a traceback, else its first words."""
    return fault[fault.rindex("(") :] if fault.startswith("traceback") else fault.partition(":")[0]


def _again(step: Step, seed: int) -> str:
    return f"python -m tests.fuzz --subject {step.subject} --seed {seed} --case {step.number}"
