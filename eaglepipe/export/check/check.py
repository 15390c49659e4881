"""Checks any draft folder against the rules of one engine; no engine's loader does."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eaglepipe.drafts.folder import CONFIG_FILE, WEIGHTS_FILE, DraftFolder, read_draft_folder
from eaglepipe.drafts.reading import layer_config, read_rope, read_shape
from eaglepipe.drafts.shape import DraftShape, canonical_name
from eaglepipe.errors import DraftError
from eaglepipe.export.check.aux_names import check_aux
from eaglepipe.export.check.config_fields import check_config
from eaglepipe.export.check.findings import CheckReport, Finding, error, warning
from eaglepipe.export.check.tensor_names import check_names, check_pairs
from eaglepipe.export.check.vocab_maps import check_vocab
from eaglepipe.export.engines import Engine
from eaglepipe.files.json_object import read_json_object, text_config


@dataclass(frozen=True, kw_only=True)
class TargetSizes:
    """Of the target's config; None where the target is not at hand."""

    depth: int | None = None
    model_type: str | None = None
    vocab_size: int | None = None
    hidden_size: int | None = None
    max_positions: int | None = None
    rope: Mapping[str, Any] | None = None


def check_draft(folder: Path, engine: Engine, *, target: Path | None = None) -> CheckReport:
    """Check a draft folder, ours or not; `target` is the target's folder, for what only its config can tell.

    Raises:
        DraftError: there is no draft folder, or its config lacks the sizes that everything else follows from.
        CorruptError: a file is damaged.
    """
    sizes = TargetSizes() if target is None else read_target(target)
    return check_folder(read_draft_folder(folder), engine, sizes)


def check_folder(stored: DraftFolder, engine: Engine, target: TargetSizes) -> CheckReport:
    """`check_draft` on a folder that is read already."""
    canonical = {canonical_name(name): tensor for name, tensor in stored.tensors.items()}
    try:
        shape = read_shape(stored.config, canonical)
    except DraftError as fault:
        raise DraftError(f"{stored.folder / CONFIG_FILE}: {fault}, so that nothing can be checked") from None
    findings = list(_findings(stored, engine, target, shape, canonical))
    findings.sort(key=lambda finding: (finding.severity, finding.kind, finding.name))
    return CheckReport(folder=stored.folder, engine=engine, findings=tuple(findings))


def _findings(
    stored: DraftFolder,
    engine: Engine,
    target: TargetSizes,
    shape: DraftShape,
    canonical: Mapping[str, torch.Tensor],
) -> Iterator[Finding]:
    yield from _files(stored, engine)
    yield from check_config(engine, stored.config, shape)
    if shape.family != "eagle1":
        yield from check_aux(engine, stored.config, depth=target.depth, target_type=target.model_type)
    yield from check_names(engine, stored.config, shape, stored.tensors)
    yield from check_pairs(shape, canonical)
    yield from check_vocab(shape, canonical)
    yield from _dtype(stored)
    yield from _against_target(stored.config, shape, target)


def _files(stored: DraftFolder, engine: Engine) -> Iterator[Finding]:
    names = [path.name for path in stored.weights]
    if names == [WEIGHTS_FILE]:
        return
    if engine == "speculators":
        yield error("file", names[0], f"speculators reads {WEIGHTS_FILE} alone, and no sharded files")
    elif engine == "hf" or len(names) > 1:
        yield warning("file", names[0], f"one {WEIGHTS_FILE} is what every reader takes")


def _dtype(stored: DraftFolder) -> Iterator[Finding]:
    inner = layer_config(stored.config)
    declared = inner.get("torch_dtype") or inner.get("dtype") or stored.config.get("torch_dtype")
    found = {str(t.dtype).removeprefix("torch.") for t in stored.tensors.values() if t.is_floating_point()}
    if declared is None:
        yield warning("field", "torch_dtype", f"absent; the weights are {', '.join(sorted(found))}")
    elif found - {declared}:
        yield warning(
            "field", "torch_dtype", f"{declared}, but there are weights in {', '.join(sorted(found - {declared}))}"
        )


def read_target(folder: Path) -> TargetSizes:
    """The sizes in a target's config.json, that of its text part where there is one.

    Raises:
        DraftError: there is no such file.
    """
    path = folder / CONFIG_FILE if folder.is_dir() else folder
    if not path.is_file():
        raise DraftError(f"{folder}: --target takes the target's folder or its {CONFIG_FILE}")
    return target_sizes(read_json_object(path))


def target_sizes(config: Mapping[str, Any]) -> TargetSizes:
    text = text_config(config)
    return TargetSizes(
        depth=text.get("num_hidden_layers"),
        model_type=text.get("model_type"),
        vocab_size=text.get("vocab_size"),
        hidden_size=text.get("hidden_size"),
        max_positions=text.get("max_position_embeddings"),
        rope=read_rope(text),
    )


def _against_target(config: Mapping[str, Any], shape: DraftShape, target: TargetSizes) -> Iterator[Finding]:
    inner = layer_config(config)
    if target.vocab_size not in (None, shape.vocab_size):
        yield error("field", "vocab_size", f"{shape.vocab_size}, the target's config says {target.vocab_size}")
    if target.hidden_size not in (None, shape.target_hidden_size):
        yield error(
            "field",
            "target_hidden_size",
            f"{shape.target_hidden_size} here, the target's states have {target.hidden_size}",
        )
    length = inner.get("max_position_embeddings")
    if target.max_positions is not None and isinstance(length, int) and length < target.max_positions:
        yield warning("field", "max_position_embeddings", f"{length}, less than the target's {target.max_positions}")
    own = read_rope(config)
    if own is not None and target.rope is not None and own["rope_theta"] != target.rope["rope_theta"]:
        yield warning("field", "rope_theta", f"{own['rope_theta']}, the target's is {target.rope['rope_theta']}")
