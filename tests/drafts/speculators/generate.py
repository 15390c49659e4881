"""Writes the drafts beside this file with the `speculators` package's own code, and what its modules compute.

Each folder is what its `save_pretrained` wrote, in bfloat16, and `io.safetensors`: inputs of a packed row of two
documents and the logits of each step in float32. Run it in an environment with speculators 0.9:

    python tests/drafts/speculators/generate.py
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from speculators.losses import resolve_loss_config
from speculators.models.eagle3.core import Eagle3DraftModel
from speculators.models.peagle.core import PEagleDraftModel
from speculators.models.peagle.data import generate_cod_sample_indices
from speculators.train.cli import create_transformer_layer_config
from transformers import LlamaConfig, LlamaForCausalLM

V, D, H, LAYERS, STEPS = 48, 24, 16, 10, 3
LENGTHS = (13, 10)
ROPE = {"rope_type": "default", "rope_theta": 5000.0}
YARN = {**ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
CLI_DEFAULTS = {"norm_before_residual": True, "norm_before_fc": True, "norm_output": True}
CASES: dict[str, dict[str, Any]] = {
    "defaults": {**CLI_DEFAULTS, "window": 4},
    "qwen3": {**CLI_DEFAULTS, "arch": "qwen3", "window": 4},
    "whole_vocabulary": {"draft_vocab_size": V, "full": [0]},
    "three_layers": {"layers": 3, "window": 5, "full": [1], "norm_before_residual": True},
    "fc_norm": {"fc_norm": True, "norm_output": True, "full": [0], "target_layer_ids": [1, 3, 5, 10]},
    "yarn": {"norm_before_fc": True, "full": [0], "rope": YARN, "target_layer_ids": [1, 4, 7]},
    "peagle": {"peagle": True, "arch": "qwen3", "window": 4, "norm_before_residual": True},
    "peagle_whole_vocabulary": {"peagle": True, "arch": "llama", "layers": 2, "full": [0, 1], "draft_vocab_size": V},
}


def verifier(rope: dict[str, Any]) -> str:
    """Save a target of random weights under a relative name, which goes into the configs."""
    config = LlamaConfig(
        vocab_size=V, hidden_size=H, intermediate_size=H, num_hidden_layers=LAYERS, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=128, rope_parameters=rope, rms_norm_eps=1e-5,
        tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained("verifier")
    return "verifier"


def build(case: dict[str, Any]) -> Any:
    name = verifier(case.get("rope", ROPE))
    layer = create_transformer_layer_config(
        name, case.get("layers", 1), case.get("arch", "llama"), "silu", case.get("window", 4), case.get("full", [])
    )
    size = case.get("draft_vocab_size", D)
    ids = torch.randperm(V, generator=torch.Generator().manual_seed(1))[:size].sort().values
    flags = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output", "target_layer_ids")
    kwargs = {"norm_before_residual": False, **{flag: case[flag] for flag in flags if flag in case}}
    cls = PEagleDraftModel if "peagle" in case else Eagle3DraftModel
    torch.manual_seed(2)
    model = cls.from_training_args(
        layer,
        t2d=torch.zeros(V, dtype=torch.bool).index_fill(0, ids, True),
        d2t=ids - torch.arange(size),
        draft_vocab_size=size, verifier_name_or_path=name, draft_attn_impl="eager", ttt_steps=STEPS, num_depths=4,
        mask_token_id=V - 1, **kwargs,
    )  # fmt: skip
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_((1 + 0.3 * noise if "norm" in key else 0.3 * noise).bfloat16())
    return model.float().eval()


@torch.no_grad()
def record(model: Any) -> dict[str, torch.Tensor]:
    total, num_aux = sum(LENGTHS), model.fc.in_features // H
    io = {
        "aux": torch.randn(1, total, num_aux * H),
        "ids": torch.randint(V - 1, (1, total)),
        "documents": torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))[None],
    }
    logits: list[torch.Tensor] = []
    model.lm_head.register_forward_hook(lambda _module, _args, output: logits.append(output[0].clone()))
    if isinstance(model, PEagleDraftModel):
        mask, settings, last_hidden = torch.ones(1, total), {"num_depths": 4}, torch.randn(1, total, H)
        torch.manual_seed(5)
        io["anchors"], io["depths"] = generate_cod_sample_indices(total, mask, **settings)
        torch.manual_seed(5)
        model(io["aux"], io["ids"], io["documents"], loss_mask=mask, loss_config=resolve_loss_config("ce", "eager"),
              verifier_last_hidden_states=last_hidden, **settings)  # fmt: skip
    else:
        model(io["aux"], io["ids"], io["documents"], ttt_steps=STEPS)
    return {**io, "logits": torch.stack(logits)}


def main(root: Path) -> None:
    work = root / "work"
    work.mkdir(exist_ok=True)
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
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent).resolve())
