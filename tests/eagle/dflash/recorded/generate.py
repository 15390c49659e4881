"""Writes the files beside this one with the `speculators` package's own modules: block drafts, and what they compute.

`target.safetensors` holds what all drafts share: a packed row of three documents with the target's states, embeddings,
norm and head. `NAME.safetensors` holds a draft's weights and its settings (in the metadata), and for given anchors its
logits, confidences, each kind of loss, and gradients of one of them. Weights and states are bfloat16, and computed with
in float32. Run it in an environment with speculators 0.9:

    python tests/eagle/dflash/recorded/generate.py
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from speculators import SpeculatorsConfig, VerifierConfig
from speculators.losses import resolve_loss_config
from speculators.models.dflash import DFlashSpeculatorConfig
from speculators.models.dflash import core as dflash
from speculators.models.dspark import DSparkSpeculatorConfig
from speculators.models.dspark import core as dspark
from speculators.proposals.greedy import GreedyTokenProposalConfig
from transformers import Qwen3Config

V, D, H, MASK_TOKEN = 64, 24, 16, 63
LENGTHS = (25, 12, 21)
TURNS = ((6, 14), (17, 25), (28, 37), (41, 58))  # supervised tokens of the packed row, [start, stop)
ANCHORS = (6, 9, 22, 35, 44)
NUM_AUX = 5
LOSSES = {
    "ce": {},
    "kl_div": {},
    "tv": {"gamma": 5.0},
    '{"ce": 0.1, "tv": 1.8}': {"gamma": 7.0},
    "ce, dpace": {"per_position_loss_weight": "dpace"},
    "ce, dpace 0.2": {"per_position_loss_weight": "dpace", "dpace_alpha": 0.2},
}
GRADIENTS_OF = '{"ce": 0.1, "tv": 1.8}'
SHAPE = {
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 24,
}  # fmt: skip
LAYER_KEYS = (*SHAPE, "rms_norm_eps", "attention_bias", "rope_parameters", "sliding_window", "layer_types")
FULL_V = {"draft_vocab_size": V}
WINDOW = {"windows": [5]}
CASES: dict[str, dict[str, Any]] = {
    "plain": {"block_size": 4, **FULL_V},
    "two_layers": {"block_size": 5, "num_hidden_layers": 2},
    "three_layers_one_aux": {"block_size": 4, "num_hidden_layers": 3, "num_aux": 1, **FULL_V},
    "five_layers": {"block_size": 7, "num_hidden_layers": 5, "num_aux": 5},
    "long_blocks": {"block_size": 16, "num_hidden_layers": 2, "anchors": (6, 22, 35, 41)},
    "ten": {"block_size": 10, "num_key_value_heads": 2, "rope_theta": 500.0, **FULL_V},
    "causal_window": {"block_size": 6, **WINDOW},
    "window": {"block_size": 6, **WINDOW, "sliding_window_non_causal": True},
    "mixed_windows": {"block_size": 5, "num_hidden_layers": 3, "windows": [4, None, 4]},
    "mixed_windows_non_causal": {
        "block_size": 8, "num_hidden_layers": 2, "windows": [None, 3], "sliding_window_non_causal": True,
    },
    "biases": {"block_size": 4, "attention_bias": True, "rms_norm_eps": 1e-3},
    "wide_heads": {"block_size": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32},
    "anchor_layout": {"block_size": 4, "sample_from_anchor": True, **FULL_V},
    "yarn": {
        "block_size": 8, "rope_theta": 100.0, "rope": {
            "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16,
        },
    },
    "dspark": {"dspark": True, "block_size": 4, **FULL_V},
    "dspark_small_vocabulary": {"dspark": True, "block_size": 7, "num_hidden_layers": 2},
    "dspark_gated": {"dspark": True, "block_size": 5, "markov_head_type": "gated", "num_aux": 1},
    "dspark_plain_confidence": {"dspark": True, "block_size": 4, "confidence_head_with_markov": False},
    "dspark_no_confidence": {"dspark": True, "block_size": 6, "enable_confidence_head": False, **WINDOW},
    "dspark_bonus_anchor": {"dspark": True, "block_size": 5, "sample_from_anchor": False, "num_hidden_layers": 2},
    "dspark_long_blocks": {
        "dspark": True, "block_size": 16, "markov_head_type": "gated", "windows": [6],
        "sliding_window_non_causal": True, "anchors": (6, 22, 35, 41),
    },
}  # fmt: skip


def made_target() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int, scale: float) -> torch.Tensor:
        return (scale * torch.randn(*shape, generator=generator)).bfloat16()

    total = sum(LENGTHS)
    mask = torch.zeros(total, dtype=torch.int64)
    for start, stop in TURNS:
        mask[start:stop] = 1
    return {
        "aux": noise(total, NUM_AUX, H, scale=1.0),
        "last_hidden": noise(total, H, scale=1.0),
        "ids": torch.randint(MASK_TOKEN, (total,), generator=generator),
        "loss_mask": mask,
        "lengths": torch.tensor(LENGTHS),
        "embed_tokens": noise(V, H, scale=1.0),
        "norm": 1 + noise(H, scale=0.2),
        "lm_head": noise(V, H, scale=0.7),
        "selected_token_ids": torch.randperm(V, generator=generator)[:D].sort().values,
    }


def build(case: dict[str, Any], target: dict[str, torch.Tensor]) -> Any:
    """Build a draft of random weights whose vocabulary, embeddings and head are the target's."""
    windows = case.get("windows", [None])
    layers = case.get("num_hidden_layers", 1)
    rope = {"rope_type": "default", "rope_theta": case.get("rope_theta", 10_000.0), **case.get("rope", {})}
    layer = Qwen3Config(
        **{key: case.get(key, default) for key, default in SHAPE.items()},
        vocab_size=V, hidden_size=H, rms_norm_eps=case.get("rms_norm_eps", 1e-6), pad_token_id=None,
        attention_bias=case.get("attention_bias", False), max_position_embeddings=128, tie_word_embeddings=False,
        rope_parameters=rope,
        use_sliding_window="windows" in case,
        sliding_window=next((window for window in windows if window), None),
        layer_types=["sliding_attention" if window else "full_attention" for window in (windows * layers)[:layers]],
    )  # fmt: skip
    layer._attn_implementation = "eager"
    size, is_dspark = case.get("draft_vocab_size", D), "dspark" in case
    flags = (
        "block_size", "sliding_window_non_causal", "sample_from_anchor", "markov_head_type", "enable_confidence_head",
        "confidence_head_with_markov",
    )  # fmt: skip
    config = (DSparkSpeculatorConfig if is_dspark else DFlashSpeculatorConfig)(
        transformer_layer_config=layer,
        draft_vocab_size=size,
        mask_token_id=MASK_TOKEN,
        aux_hidden_state_layer_ids=list(range(1, case.get("num_aux", 3) + 1)),
        speculators_config=SpeculatorsConfig(
            algorithm="dflash",
            proposal_methods=[GreedyTokenProposalConfig(speculative_tokens=3)],
            default_proposal_method="greedy",
            verifier=VerifierConfig(name_or_path=None, architectures=[]),
        ),
        **({"markov_rank": 8} if is_dspark else {}),
        **{flag: case[flag] for flag in flags if flag in case},
    )
    model = (dspark.DSparkDraftModel if is_dspark else dflash.DFlashDraftModel)(config)
    torch.manual_seed(2)
    ids = target["selected_token_ids"] if size < V else torch.arange(V)
    if size < V:
        model.load_vocab_mappings(torch.zeros(V, dtype=torch.bool).index_fill(0, ids, True), ids - torch.arange(size))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_((1 + 0.3 * noise if "norm" in key else 0.3 * noise).bfloat16())
        model.embed_tokens.weight.copy_(target["embed_tokens"])
        model.verifier_norm.weight.copy_(target["norm"])
        for head in (model.lm_head, model.verifier_lm_head):
            head.weight.copy_(target["lm_head"][ids])
    return model.eval()


@contextmanager
def recording(anchors: torch.Tensor, calls: list[tuple[Any, ...]]) -> Iterator[None]:
    """Give the anchors instead of drawing them, and keep the arguments of the losses."""
    select, metrics = dflash.select_anchors, {module: module.compute_metrics for module in (dflash, dspark)}
    dflash.select_anchors = lambda *_: (anchors, torch.ones_like(anchors, dtype=torch.bool))

    def kept(module: Any) -> Any:
        def compute(*arguments: Any, **settings: Any) -> Any:
            calls.append(arguments)
            return metrics[module](*arguments, **settings)

        return compute

    for module in metrics:
        module.compute_metrics = kept(module)
    try:
        yield
    finally:
        dflash.select_anchors = select
        for module, function in metrics.items():
            module.compute_metrics = function


def record(model: Any, target: dict[str, torch.Tensor], anchors: torch.Tensor) -> dict[str, torch.Tensor]:
    lengths, num_aux = target["lengths"], model.fc.in_features // H
    is_dspark = isinstance(model, dspark.DSparkDraftModel)
    eager = {"tv_loss_fn": resolve_loss_config("tv", "eager")["tv"][0]} if is_dspark else {}
    arguments = {
        "hidden_states": target["aux"][None, :, :num_aux].flatten(2).float(),
        "input_ids": target["ids"][None],
        "loss_mask": target["loss_mask"][None].clone(),
        "verifier_last_hidden_states": target["last_hidden"][None].float(),
        "document_ids": torch.repeat_interleave(torch.arange(len(lengths)), lengths)[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths.tolist()])[None],
        "max_anchors": len(anchors),
    }
    calls: list[tuple[Any, ...]] = []
    found: dict[str, torch.Tensor] = {}
    with recording(anchors, calls):
        for name, settings in LOSSES.items():
            model.zero_grad()
            loss_config = resolve_loss_config(name.split(",")[0] if name[0] != "{" else name, "eager")
            _, loss, metrics = model(**arguments, loss_config=loss_config, **settings, **eager)
            found[f"loss.{name}"] = loss.detach()
            if name == GRADIENTS_OF:
                loss.backward()
                for key, parameter in model.named_parameters():
                    if parameter.requires_grad and parameter.dim() == 1:
                        found[f"gradient.{key}"] = parameter.grad.clone()
                if "confidence_loss_sum" in metrics:
                    found["confidence_loss"] = metrics["confidence_loss_sum"].clone()
    shape = (len(anchors), model.block_size)
    found["logits"] = calls[0][0].detach()[0].unflatten(0, shape)
    if is_dspark and calls[0][2] is not None:
        found["confidence_logits"] = calls[0][2].detach()[0].unflatten(0, shape)
    found["mask"] = calls[0][3 if is_dspark else 2][0].unflatten(0, shape).bool()
    return found


def settings_of(model: Any) -> dict[str, Any]:
    """Return what a reader needs to build the same draft."""
    layer, config = model.config.transformer_layer_config.to_dict(), model.config
    names = ("block_size", "sample_from_anchor", "sliding_window_non_causal", "draft_vocab_size", "mask_token_id")
    extras = ("markov_rank", "markov_head_type", "enable_confidence_head", "confidence_head_with_markov")
    return {
        "layer": {name: layer[name] for name in LAYER_KEYS},
        "num_aux": len(config.aux_hidden_state_layer_ids),
        **{name: getattr(config, name) for name in (*names, *extras) if hasattr(config, name)},
    }


def main(folder: Path) -> None:
    target = made_target()
    save_file({key: value.contiguous() for key, value in target.items()}, folder / "target.safetensors")
    shared = ("embed_tokens", "lm_head", "verifier", "rotary_emb", "d2t", "t2d")
    for name, case in CASES.items():
        model = build(case, target)
        anchors = torch.tensor(case.get("anchors", ANCHORS))
        weights = {key: value.bfloat16() for key, value in model.state_dict().items() if not key.startswith(shared)}
        tensors = {**{f"draft.{key}": value for key, value in weights.items()}, **record(model, target, anchors)}
        save_file(
            {"anchors": anchors, **{key: value.contiguous() for key, value in tensors.items()}},
            folder / f"{name}.safetensors",
            metadata={"settings": json.dumps(settings_of(model))},
        )


if __name__ == "__main__":
    main(Path(__file__).parent)
