"""Writes the drafts in `blocks/` with the `speculators` package's own code, and what its modules compute.

Each folder is what its `save_pretrained` wrote, in bfloat16: without the target's embeddings and, of the whole
vocabulary, head. These lie in `io.safetensors`, with aux states and ids of a packed row of two documents, the anchors
that were drawn and, for each block, logits [anchors, block, D] and confidences in float32. Run it in an environment
with speculators 0.9:

    python tests/drafts/speculators/generate_blocks.py
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from speculators.losses import resolve_loss_config
from speculators.models.dflash import core as dflash
from speculators.models.dspark import core as dspark
from speculators.train.cli import create_transformer_layer_config
from transformers import LlamaConfig, LlamaForCausalLM

V, D, H, LAYERS = 48, 24, 16, 10
LENGTHS = (17, 12)
ANCHORS = 6
YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 32}
CASES: dict[str, dict[str, Any]] = {
    "dflash": {"layers": 2, "full": [0, 1], "block_size": 4, "draft_vocab_size": V},
    "dflash_window": {
        "layers": 2, "block_size": 6, "target_layer_ids": [1, 3, 5, 8, 10], "sliding_window_non_causal": True,
    },
    "dflash_mixed": {
        "layers": 3, "full": [1], "block_size": 5, "draft_vocab_size": V, "target_layer_ids": [4],
        "sliding_window_non_causal": True, "rope": YARN,
    },
    "dflash_defaults": {"layers": 1, "block_size": 8},  # windows that are causal inside a block
    "dspark": {"dspark": True, "layers": 2, "full": [0, 1], "block_size": 5, "draft_vocab_size": V},
    "dspark_gated": {
        "dspark": True, "layers": 1, "full": [0], "block_size": 4, "markov_head_type": "gated",
        "confidence_head_with_markov": False,
    },
    "dspark_bonus_anchor": {
        "dspark": True, "layers": 1, "full": [0], "block_size": 4, "sample_from_anchor": False,
        "enable_confidence_head": False, "draft_vocab_size": V,
    },
    "dspark_rnn": {"dspark": True, "layers": 1, "full": [0], "block_size": 3, "markov_head_type": "rnn"},
}  # fmt: skip


def verifier(rope: dict[str, Any]) -> str:
    """Save a target of random weights under a relative name, which goes into the configs."""
    config = LlamaConfig(
        vocab_size=V, hidden_size=H, intermediate_size=H, num_hidden_layers=LAYERS, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=128, rope_parameters=rope, rms_norm_eps=1e-5,
        tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).bfloat16()
    with torch.no_grad():
        for head in (model.model.embed_tokens, model.lm_head):
            head.weight.normal_(std=0.3)
    model.save_pretrained("verifier")
    return "verifier"


def build(case: dict[str, Any]) -> Any:
    rope = case.get("rope", {"rope_type": "default", "rope_theta": 5000.0})
    name = verifier(rope)
    layer = create_transformer_layer_config(name, case["layers"], "qwen3", "silu", 4, case.get("full", []))
    size = case.get("draft_vocab_size", D)
    ids = torch.randperm(V, generator=torch.Generator().manual_seed(1))[:size].sort().values
    flags = (
        "block_size", "target_layer_ids", "sliding_window_non_causal", "sample_from_anchor", "markov_head_type",
        "confidence_head_with_markov", "enable_confidence_head",
    )  # fmt: skip
    cls = dspark.DSparkDraftModel if "dspark" in case else dflash.DFlashDraftModel
    torch.manual_seed(2)
    model = cls.from_training_args(
        layer,
        t2d=torch.zeros(V, dtype=torch.bool).index_fill(0, ids, True),
        d2t=ids - torch.arange(size),
        draft_vocab_size=size, verifier_name_or_path=name, draft_attn_impl="eager", mask_token_id=V - 1, markov_rank=8,
        **{flag: case[flag] for flag in flags if flag in case},
    )  # fmt: skip
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if not key.startswith(("embed_tokens", "lm_head", "verifier_lm_head", "verifier_norm")):
                noise = torch.randn_like(parameter)
                parameter.copy_((1 + 0.3 * noise if "norm" in key else 0.3 * noise).bfloat16())
    return model.float().eval()


@contextmanager
def recording(seen: dict[str, torch.Tensor]) -> Iterator[None]:
    """Keep the anchors that are drawn, and what the losses are given."""
    select, metrics = dflash.select_anchors, {module: module.compute_metrics for module in (dflash, dspark)}

    def selected(*args: Any) -> Any:
        seen["anchors"], valid = select(*args)
        assert bool(valid.all())
        return seen["anchors"], valid

    def measured(module: Any) -> Any:
        def compute(logits: torch.Tensor, targets: torch.Tensor, *rest: Any, **settings: Any) -> Any:
            seen["logits"] = logits[0].unflatten(0, (ANCHORS, -1)).clone()
            if module is dspark and rest[0] is not None:
                seen["confidences"] = rest[0][0].unflatten(0, (ANCHORS, -1)).clone()
            return metrics[module](logits, targets, *rest, **settings)

        return compute

    dflash.select_anchors = selected
    for module in metrics:
        module.compute_metrics = measured(module)
    try:
        yield
    finally:
        dflash.select_anchors = select
        for module, function in metrics.items():
            module.compute_metrics = function


@torch.no_grad()
def record(model: Any) -> dict[str, torch.Tensor]:
    total, num_aux = sum(LENGTHS), model.fc.in_features // H
    documents = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))[None]
    io = {
        "aux": torch.randn(1, total, num_aux * H),
        "ids": torch.randint(V - 1, (1, total)),
        "documents": documents,
        "positions": torch.cat([torch.arange(length) for length in LENGTHS])[None],
    }
    mask = torch.ones(1, total, dtype=torch.long)
    mask[0, LENGTHS[0] - model.block_size : LENGTHS[0]] = 0  # no block leaves its document
    seen: dict[str, torch.Tensor] = {}
    is_dspark = isinstance(model, dspark.DSparkDraftModel)
    eager = {"tv_loss_fn": resolve_loss_config("tv", "eager")["tv"][0]} if is_dspark else {}
    with recording(seen):
        model(
            io["aux"], io["ids"], mask, torch.randn(1, total, H), documents, io["positions"],
            loss_config=resolve_loss_config("ce", "eager"), max_anchors=ANCHORS, **eager,
        )  # fmt: skip
    head = model.verifier_lm_head if model.use_draft_vocab else model.lm_head
    return {**io, **seen, "embed_tokens": model.embed_tokens.weight.clone(), "lm_head": head.weight.clone()}


def main(root: Path) -> None:
    work = root / "work"
    work.mkdir(exist_ok=True, parents=True)
    os.chdir(work)
    for name, case in CASES.items():
        folder = root / name
        shutil.rmtree(folder, ignore_errors=True)
        model = build(case)
        io = record(model)
        model.bfloat16().save_pretrained(folder)
        (folder / "config.py").unlink(missing_ok=True)
        save_file({key: value.contiguous() for key, value in io.items()}, folder / "io.safetensors")
    os.chdir(root)
    shutil.rmtree(work)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("blocks")).resolve())
