"""The model card: the draft, its origin, the figures that were measured, and how to serve it."""

from string import Template as StringTemplate

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader

from eaglepipe import __version__
from eaglepipe.export.layouts import Layout
from eaglepipe.export.target_facts import public_name
from eaglepipe.export.trained import TrainedDraft

TEMPLATE = "card.md.jinja"
TAGS = ["speculative-decoding", "eagle", "eaglepipe"]
SERVED_TOKENS = 5
"""Tokens that the serving command drafts at once."""
_EMBEDDINGS = {None: "the draft's own", True: "trained", False: "the target's"}


def model_card(draft: TrainedDraft, layout: Layout, *, dtype: str, target_name: str) -> ModelCard:
    """Return the card of a draft in an engine's layout; it names no local paths."""
    shape = draft.shape
    is_on_hub = target_name.count("/") == 1
    is_normed = shape.fc_norm or shape.norm_output
    table = draft.evaluation.get("table")  # it labels every figure of its own
    sources = [] if draft.recipe is None else draft.recipe.data.sources
    files = PackageLoader("eaglepipe.export", ".")
    environment = Environment(loader=files, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"grouped": "{:,}".format, "percent": "{:.1%}".format}
    text = environment.get_template(TEMPLATE).render(
        metadata=ModelCardData(base_model=target_name if is_on_hub else None, tags=TAGS),
        label=(shape.family.normed_label if is_normed else None) or shape.family.draft_label,
        target_name=target_name,
        layout=layout,
        shape=shape,
        num_parameters=sum(t.numel() for name, t in draft.tensors.items() if name not in ("d2t", "t2d")),
        boundaries=draft.boundaries and list(draft.boundaries),
        dtype=dtype,
        embeddings=_EMBEDDINGS[draft.embeddings_trained],
        architectures=draft.target.architectures,
        recipe=draft.recipe,
        sources=[public_name(source.path) or source.path for source in sources],
        cache=draft.cache,
        train=draft.train,
        evaluation=table.rstrip("\n") if isinstance(table, str) else None,
        serving=_serving_command(draft, layout, target_name),
        version=__version__,
    )
    return ModelCard(text)


def _serving_command(draft: TrainedDraft, layout: Layout, target_name: str) -> str:
    method, block = draft.shape.family.engine_method, draft.shape.block
    tokens = SERVED_TOKENS if block is None else block.num_guesses or SERVED_TOKENS
    return StringTemplate(layout.serving if block is None else layout.serving_blocks).substitute(
        target=target_name,
        method=method,
        algorithm=method.upper(),
        tokens=tokens,
        slots=tokens + 1,
        parallel=', "parallel_drafting": true' if draft.shape.family.is_parallel else "",
    )
