"""The model card: what the draft is, what it was made from, what was measured, and how to serve it."""

from collections.abc import Iterator

from eaglepipe import __version__
from eaglepipe.export.engine_config import public_name
from eaglepipe.export.engines import Engine
from eaglepipe.export.trained import TrainedDraft

FAMILIES = {"eagle3": "EAGLE-3", "peagle": "P-EAGLE", "eagle1": "EAGLE-1/2"}


def model_card(draft: TrainedDraft, engine: Engine, *, dtype: str, target_name: str) -> str:
    """Markdown with the Hub's header; names no local paths."""
    return "\n".join(
        [
            *_header(target_name),
            f"# {_family(draft)} draft for {target_name}",
            "",
            f"A speculative-decoding draft, in the layout of **{engine}**. It only serves this target.",
            "",
            *_section("The draft", _draft_rows(draft, dtype)),
            *_section("The target and the cache it was trained from", _cache_rows(draft, target_name)),
            *_section("The run", _run_rows(draft)),
            *_section("Measured", _figures(draft)),
            *_acceptance(draft),
            *_evaluation(draft),
            "## Serving",
            "",
            *_serving(draft, engine, target_name),
            "",
            f"Made with eaglepipe {__version__}.",
            "",
        ]
    )


def _family(draft: TrainedDraft) -> str:
    is_newer = draft.shape.family == "eagle3" and (draft.shape.fc_norm or draft.shape.norm_output)
    return "EAGLE-3.1" if is_newer else FAMILIES[draft.shape.family]


def _header(target_name: str) -> list[str]:
    base = [f"base_model: {target_name}"] if target_name.count("/") == 1 else []
    tags = ["tags:", "- speculative-decoding", "- eagle", "- eaglepipe"]
    return ["---", *base, *tags, "---", ""]


def _section(title: str, rows: Iterator[tuple[str, str]]) -> list[str]:
    lines = [f"| {name} | {value} |" for name, value in rows]
    return [f"## {title}", "", "| | |", "|---|---|", *lines, ""] if lines else []


def _draft_rows(draft: TrainedDraft, dtype: str) -> Iterator[tuple[str, str]]:
    shape = draft.shape
    yield "parameters", f"{sum(t.numel() for name, t in draft.tensors.items() if name not in ('d2t', 't2d')):,}"
    yield "layers, hidden size", f"{shape.num_layers}, {shape.hidden_size:,}"
    yield "vocabulary", f"{shape.draft_vocab_size:,} of the target's {shape.vocab_size:,}"
    if shape.family != "eagle1":
        layers = "the default ones: 2, n/2, n-3" if draft.boundaries is None else str(list(draft.boundaries))
        yield "target layers read (boundaries: b is the output of layer b-1)", layers
    yield "weights", f"{dtype}, from float32 masters" if dtype != "float32" else dtype
    yield "embeddings", _embeddings(draft)


def _embeddings(draft: TrainedDraft) -> str:
    if draft.embeddings_trained is None:
        return "the draft's own"
    return "trained" if draft.embeddings_trained else "the target's"


def _cache_rows(draft: TrainedDraft, target_name: str) -> Iterator[tuple[str, str]]:
    yield "target", target_name
    recipe, cache = draft.record.recipe, draft.record.cache
    if recipe is not None and recipe.target.revision:
        yield "revision", recipe.target.revision
    if draft.target.architectures:
        yield "architecture", ", ".join(draft.target.architectures)
    if recipe is not None:
        yield "conversations", ", ".join(dict.fromkeys(_source_name(source.path) for source in recipe.data.sources))
        yield "supervision", f"{recipe.cache.supervision}, aux states in {recipe.cache.aux_codec}"
    if cache is not None:
        yield "cache", f"{cache.name}, identity {cache.identity}"
        yield "its size", f"{cache.samples:,} samples, {cache.tokens:,} tokens, {cache.supervised_tokens:,} supervised"


def _source_name(path: str) -> str:
    return public_name(path) or path


def _run_rows(draft: TrainedDraft) -> Iterator[tuple[str, str]]:
    recipe, train = draft.record.recipe, draft.record.train
    if recipe is not None:
        settings = recipe.train
        yield "objective", settings.summary
        yield "learning rate", f"{settings.learning_rate:g}"
        yield "tokens of a step", f"{settings.batch_tokens:,}"
        yield "seed", str(settings.seed)
    if train is not None:
        yield "steps", f"{train['steps']:,} taken; the draft is that of step {train['best_step']:,}"
        yield "tokens seen", f"{train['tokens']:,}, {train['supervised_tokens']:,} supervised"


def _figures(draft: TrainedDraft) -> Iterator[tuple[str, str]]:
    train = draft.record.train or {}
    length = train.get("simulated_acceptance_length_end")
    if length is not None:
        yield f"acceptance length ({_how(draft)})", f"{length:.3f}"
    if train.get("heldout_loss_end") is not None:
        yield "held-out loss", f"{train['heldout_loss_end']:.4f}"


def _how(draft: TrainedDraft) -> str:
    train = draft.record.train or {}
    depth = len(train.get("accuracy_by_depth") or ())
    kind = "parallel chain" if draft.shape.family == "peagle" else "chain"
    return f"simulated, {kind}, K = {depth}, greedy, {train.get('heldout_samples', 0):,} held-out samples"


def _evaluation(draft: TrainedDraft) -> list[str]:
    """The table that `eaglepipe eval` left, which labels every figure of its own."""
    table = (draft.record.evaluation or {}).get("table")
    return ["```", *table.splitlines(), "```", ""] if isinstance(table, str) else []


def _acceptance(draft: TrainedDraft) -> list[str]:
    train = draft.record.train or {}
    rows = {
        "accuracy": train.get("accuracy_by_depth"),
        "accepted if all before": train.get("conditional_acceptance_by_depth"),
    }
    known: dict[str, list[float]] = {name: list(values) for name, values in rows.items() if values}
    if not known:
        return []
    depths = range(1, 1 + max(len(values) for values in known.values()))
    lines = [f"| {name} | {' | '.join(f'{value:.1%}' for value in values)} |" for name, values in known.items()]
    return [f"| depth | {' | '.join(map(str, depths))} |", "|---" * (len(depths) + 1) + "|", *lines, ""]


def _serving(draft: TrainedDraft, engine: Engine, target_name: str) -> list[str]:
    tokens = 5
    method = "eagle" if draft.shape.family == "eagle1" else "eagle3"
    if engine == "sglang":
        algorithm = "EAGLE" if method == "eagle" else "EAGLE3"
        command = (
            f"python -m sglang.launch_server --model-path {target_name} --speculative-algorithm {algorithm} "
            f"--speculative-draft-model-path THIS_FOLDER --speculative-num-steps {tokens} --speculative-eagle-topk 1 "
            f"--speculative-num-draft-tokens {tokens + 1}"
        )
    else:
        parallel = ', "parallel_drafting": true' if draft.shape.family == "peagle" else ""
        command = (
            f"vllm serve {target_name} --speculative-config "
            f'\'{{"method": "{method}", "model": "THIS_FOLDER", "num_speculative_tokens": {tokens}{parallel}}}\''
        )
    return ["```bash", command, "```"]
