"""Lines that tell the user, before any forward, what a cache will hold, cost and leave out."""

from collections.abc import Callable
from pathlib import Path

from eaglepipe.cache.manifest import DROPS_FILE
from eaglepipe.precompute.inputs import Stage1Inputs
from eaglepipe.precompute.layout import CorpusLayout, faster_dtype, forward_seconds
from eaglepipe.progress import format_seconds


def report_layout(inputs: Stage1Inputs, layout: CorpusLayout, folder: str, report: Callable[[str], None]) -> None:
    """Report corpus, drops, vocabulary, bytes and duration of a cache; `folder` is its path, or why there is none."""
    vocab, counts = layout.vocab, layout.statistics
    columns = ", ".join(f"{name} {size:,.1f}" for name, size in layout.cost.by_column.items() if size >= 1)
    imported = inputs.recipe.data.imported
    duration = "no forward, as states are imported"
    if imported is None:
        duration = f"{format_seconds(forward_seconds(inputs, counts.total_tokens))} of forward on one device"
    report(f"cache     {folder}")
    generate = inputs.recipe.data.generate
    limit = "" if generate is None else "at most "
    what = "samples" if generate is None else f"answers ({generate.n} to a prompt)"
    report(
        f"corpus    {counts.num_distinct:,} {what}, {limit}{counts.total_tokens:,} tokens, "
        f"{limit}{counts.total_supervised:,} of them supervised"
    )
    report(f"dropped   {_dropped(layout, folder)}")
    coverage = f"which are {vocab.coverage():.2%} of the answers" if generate is None else "chosen by the first answers"
    report(f"vocab     {vocab.size:,} of {vocab.target_size:,} tokens, {coverage}")
    most = "at most " if inputs.spec.kind.settings else ""
    report(f"a token   {most}{layout.cost.total:,.1f} bytes: {columns}")
    report(f"estimate  {limit}{layout.estimated_bytes / 1e9:,.3g} GB in {len(layout.shards)} shards, {duration}")
    if imported is None and (note := faster_dtype(inputs)) is not None:
        report(f"dtype     {note}")


def _dropped(layout: CorpusLayout, folder: str) -> str:
    """Return the table of drops, headed by the file that lists them if it is there."""
    dropped = layout.drops.counts.total()
    if dropped == 0:
        return "none"
    num_rows = layout.statistics.num_distinct + dropped
    listing = Path(folder) / DROPS_FILE
    listed = f", listed in {listing}" if listing.exists() else ""
    return f"{dropped:,} of {num_rows:,} rows{listed}\n{layout.drops.table(num_rows)}"
