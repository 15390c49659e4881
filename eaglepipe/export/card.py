"""The model card: the draft, its origin, the figures that were measured, and how to serve it."""

from collections.abc import Iterator
from string import Template

from huggingface_hub import ModelCard, ModelCardData

from eaglepipe import __version__
from eaglepipe.export.layouts import Layout
from eaglepipe.export.target_facts import public_name
from eaglepipe.export.trained import TrainedDraft

SERVED_TOKENS = 5
"""Tokens that the serving command drafts at once."""
TAGS = ["speculative-decoding", "eagle", "eaglepipe"]
CARD = """\
---
{{ card_data }}
---

# {{ label }} draft for {{ target_name }}

A speculative-decoding draft, in the layout of **{{ engine }}**. It only serves this target.
{% for title, rows in sections.items() if rows %}
## {{ title }}

| | |
|---|---|
{%- for name, value in rows %}
| {{ name }} | {{ value }} |
{%- endfor %}
{% endfor %}
{%- if depths %}
| depth | {{ depths | join(" | ") }} |
|---{{ "|---" * depths | length }}|
{%- for name, values in by_depth.items() %}
| {{ name }} | {{ values | join(" | ") }} |
{%- endfor %}
{% endif %}
{%- if evaluation %}
```
{{ evaluation }}
```
{% endif %}
## Serving

```bash
{{ serving }}
```

Made with eaglepipe {{ version }}.

"""


def model_card(draft: TrainedDraft, layout: Layout, *, dtype: str, target_name: str) -> ModelCard:
    """Return the card of a draft in an engine's layout; it names no local paths."""
    is_on_hub = target_name.count("/") == 1
    by_depth = _by_depth(draft)
    evaluation = draft.record.evaluation.get("table")  # it labels every figure of its own
    return ModelCard.from_template(
        ModelCardData(base_model=target_name if is_on_hub else None, tags=TAGS),
        template_str=CARD,
        label=_label(draft),
        target_name=target_name,
        engine=layout.engine,
        sections={
            "The draft": list(_draft_rows(draft, dtype)),
            "The target and the cache it was trained from": list(_cache_rows(draft, target_name)),
            "The run": list(_run_rows(draft)),
            "Measured": list(_figures(draft)),
        },
        depths=range(1, 1 + max(map(len, by_depth.values()), default=0)),
        by_depth=by_depth,
        evaluation=evaluation.rstrip("\n") if isinstance(evaluation, str) else None,
        serving=_serving(draft, layout, target_name),
        version=__version__,
    )


def _label(draft: TrainedDraft) -> str:
    family = draft.shape.family
    is_normed = draft.shape.fc_norm or draft.shape.norm_output
    return (family.normed_label if is_normed else None) or family.draft_label


def _draft_rows(draft: TrainedDraft, dtype: str) -> Iterator[tuple[str, str]]:
    shape = draft.shape
    yield "parameters", f"{sum(t.numel() for name, t in draft.tensors.items() if name not in ('d2t', 't2d')):,}"
    yield "layers, hidden size", f"{shape.num_hidden_layers}, {shape.hidden_size:,}"
    yield "vocabulary", f"{shape.draft_vocab_size:,} of the target's {shape.vocab_size:,}"
    if shape.family.reads_aux:
        layers = "the default ones: 2, n/2, n-3" if draft.boundaries is None else str(list(draft.boundaries))
        yield "target layers read (boundaries: b is the output of layer b-1)", layers
    yield "weights", f"{dtype}, from float32 masters" if dtype != "float32" else dtype
    origins = {None: "the draft's own", True: "trained", False: "the target's"}
    yield "embeddings", origins[draft.embeddings_trained]


def _cache_rows(draft: TrainedDraft, target_name: str) -> Iterator[tuple[str, str]]:
    yield "target", target_name
    recipe, cache = draft.record.recipe, draft.record.cache
    if recipe is not None and recipe.target.revision:
        yield "revision", recipe.target.revision
    if draft.target.architectures:
        yield "architecture", ", ".join(draft.target.architectures)
    if recipe is not None:
        names = (public_name(source.path) or source.path for source in recipe.data.sources)
        yield "conversations", ", ".join(dict.fromkeys(names))
        yield "supervision", f"{recipe.cache.supervision}, aux states in {recipe.cache.aux_codec}"
    if cache is not None:
        yield "cache", f"{cache.name}, identity {cache.identity}"
        yield "its size", f"{cache.samples:,} samples, {cache.tokens:,} tokens, {cache.supervised_tokens:,} supervised"


def _run_rows(draft: TrainedDraft) -> Iterator[tuple[str, str]]:
    recipe, train = draft.record.recipe, draft.record.train
    if recipe is not None:
        yield "objective", recipe.train.summary
        yield "learning rate", f"{recipe.train.learning_rate:g}"
        yield "tokens of a step", f"{recipe.train.batch_tokens:,}"
        yield "seed", str(recipe.train.seed)
    if train:
        yield "steps", f"{train['steps']:,} taken; the draft is that of step {train['best_step']:,}"
        yield "tokens seen", f"{train['tokens']:,}, {train['supervised_tokens']:,} supervised"


def _figures(draft: TrainedDraft) -> Iterator[tuple[str, str]]:
    train = draft.record.train
    length, loss = train.get("simulated_acceptance_length_end"), train.get("heldout_loss_end")
    if length is not None:
        chain = "parallel chain" if draft.shape.family.is_parallel else "chain"
        depth, samples = len(train.get("accuracy_by_depth") or ()), train.get("heldout_samples", 0)
        conditions = f"simulated, {chain}, K = {depth}, greedy, {samples:,} held-out samples"
        yield f"acceptance length ({conditions})", f"{length:.3f}"
    if loss is not None:
        yield "held-out loss", f"{loss:.4f}"


def _by_depth(draft: TrainedDraft) -> dict[str, list[str]]:
    names = {"accuracy": "accuracy_by_depth", "accepted if all before": "conditional_acceptance_by_depth"}
    return {
        label: [f"{value:.1%}" for value in draft.record.train[name]]
        for label, name in names.items()
        if draft.record.train.get(name)
    }


def _serving(draft: TrainedDraft, layout: Layout, target_name: str) -> str:
    family = draft.shape.family
    return Template(layout.serving).substitute(
        target=target_name,
        method=family.engine_method,
        algorithm=family.engine_method.upper(),
        tokens=SERVED_TOKENS,
        slots=SERVED_TOKENS + 1,
        parallel=', "parallel_drafting": true' if family.is_parallel else "",
    )
