"""Checks any draft folder against the rules of one engine; no engine's loader does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eaglepipe.drafts.folder import WEIGHTS_FILE, StoredDraft, draft_weight_files, read_draft_folder
from eaglepipe.drafts.reading import layer_config, read_rope
from eaglepipe.drafts.rope import describe_scaling, rope_scaling
from eaglepipe.drafts.shape import DraftShape
from eaglepipe.errors import DraftError
from eaglepipe.export.check.aux_names import check_aux
from eaglepipe.export.check.block_fields import check_block
from eaglepipe.export.check.config_fields import check_config
from eaglepipe.export.check.findings import CheckReport, Finding, Findings, error, warning
from eaglepipe.export.check.tensor_names import check_names, check_pairs
from eaglepipe.export.check.uncapturable import UNCAPTURABLE
from eaglepipe.export.check.vocab_maps import check_vocab
from eaglepipe.export.layouts import LAYOUTS, Engine, Layout
from eaglepipe.export.target_facts import TargetFacts
from eaglepipe.files.digests import DIGESTS_FILE, read_digests
from eaglepipe.files.tensors import CONFIG_FILE, INDEX_FILE, WEIGHT_SUFFIX, pickled_files

UNCAPTURED = "target"
"""Name of the finding on a target that an engine, in the version that was read, cannot draft for."""
MASK_EMBEDDING = "mask_embedding.pt"
_READ_FILES = (CONFIG_FILE, INDEX_FILE, "hf_quant_config.json", "quantize_config.json", "quant_config.json")
"""Files beside weights by which engines decide how to load them."""


def check_draft(folder: Path, engine: Engine, target: TargetFacts | None = None) -> CheckReport:
    """Check a draft folder of any origin; facts about the target sharpen the check.

    Raises:
        DraftError: there is no draft folder, or its config lacks the sizes that everything else follows from.
        CorruptError: a file is damaged.
    """
    draft = read_draft_folder(folder)
    try:
        shape = draft.shape
    except DraftError as fault:
        raise DraftError(f"{folder / CONFIG_FILE}: {fault}, so nothing can be checked") from None
    layout, target = LAYOUTS[engine], target or TargetFacts()
    findings = [
        *_check_files(folder, layout),
        *_check_listed(folder),
        *check_config(layout, draft.config, shape),
        *_check_inputs(layout, draft.config, shape, target),
        *check_names(layout, draft.config, shape, draft.raw_tensors),
        *check_pairs(shape, draft.tensors),
        *check_vocab(shape, draft.tensors),
        *_check_dtype(draft),
        *_check_against_target(draft.config, shape, target),
        *_check_captured(layout, shape, target),
    ]
    findings.sort(key=lambda finding: (finding.severity, finding.kind, finding.name))
    return CheckReport(folder=folder, engine=engine, findings=tuple(findings))


def _check_inputs(layout: Layout, config: Mapping[str, Any], shape: DraftShape, target: TargetFacts) -> Findings:
    if shape.block is not None:
        yield from check_block(layout, config, shape, target)
    elif shape.family.reads_aux:
        yield from check_aux(layout, config, shape, target)


def _check_files(folder: Path, layout: Layout) -> Findings:
    names = [path.name for path in draft_weight_files(folder)]
    for name in pickled_files(folder):
        if name == MASK_EMBEDDING:
            yield error(name, "vLLM takes the embedding of masked slots from it, and nothing else does", "file")
        elif name not in names:
            yield warning(name, "a pickle, which may run code when read; nothing here reads it: delete it", "file")
    severity = layout.other_weight_files or ("warning" if len(names) > 1 else None)
    if severity is not None and names != [WEIGHTS_FILE]:
        message = f"every reader takes a single {WEIGHTS_FILE}; speculators reads no other files"
        yield Finding(severity=severity, kind="file", name=names[0], message=message)


def _check_listed(folder: Path) -> Findings:
    """Yield the files that a reader would take and that the folder's digests do not list."""
    listed = read_digests(folder)
    if listed is None:
        return
    for path in sorted(folder.iterdir()):
        is_read = path.name in _READ_FILES or path.suffix == WEIGHT_SUFFIX
        if is_read and path.name not in listed:
            yield warning(path.name, f"readers take it, and {DIGESTS_FILE} does not list it: not compared", "file")


def _check_dtype(draft: StoredDraft) -> Findings:
    inner = layer_config(draft.config)
    levels = (inner, draft.config)
    declared = next((level[name] for level in levels for name in ("torch_dtype", "dtype") if level.get(name)), None)
    dtypes = {str(t.dtype).removeprefix("torch.") for t in draft.raw_tensors.values() if t.is_floating_point()}
    if declared is None:
        yield warning("torch_dtype", f"absent; the weights are {', '.join(sorted(dtypes))}")
    elif others := sorted(dtypes - {declared}):
        yield warning("torch_dtype", f"{declared}, but there are weights in {', '.join(others)}")


def _check_captured(layout: Layout, shape: DraftShape, target: TargetFacts) -> Findings:
    """Yield targets whose aux states the engine that serves the layout does not give out."""
    named = sorted(UNCAPTURABLE.intersection(target.architectures))
    if named and shape.family.reads_aux and layout.engine in ("vllm", "speculators"):
        yield error(UNCAPTURED, f"vLLM captures no aux states of {named[0]}, so {layout.engine} drafts have no input")


def _check_against_target(config: Mapping[str, Any], shape: DraftShape, target: TargetFacts) -> Findings:
    if target.vocab_size not in (None, shape.vocab_size):
        yield error("vocab_size", f"{shape.vocab_size}, the target's config has {target.vocab_size}")
    if target.hidden_size not in (None, shape.target_hidden_size):
        width = f"{shape.target_hidden_size} here, the target's states have {target.hidden_size}"
        yield error("target_hidden_size", width)
    length = layer_config(config).get("max_position_embeddings")
    if target.max_positions is not None and isinstance(length, int) and length < target.max_positions:
        yield warning("max_position_embeddings", f"{length}, less than the target's {target.max_positions}")
    rope = read_rope(config)
    if rope is not None and target.rope is not None and rope["rope_theta"] != target.rope["rope_theta"]:
        yield warning("rope_theta", f"{rope['rope_theta']}, the target's is {target.rope['rope_theta']}")
    if rope is not None and target.rope is not None:
        ours, theirs = rope_scaling(rope), rope_scaling(target.rope)
        if ours != theirs:
            yield warning("rope_scaling", f"{describe_scaling(ours)}, the target's is {describe_scaling(theirs)}")
