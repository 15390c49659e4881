"""Writes the drafts beside this file with SpecForge's own class, and what it computes.

Each folder is what `save_pretrained` wrote, in float32 and without embeddings, as its trainer keeps it, and
`io.safetensors`: embeddings, token ids [slots], aux states [slots, 3H], and the logits [steps, slots, D] of a chain of
steps for each value of `norm_output`. Run it where specforge 0.2 can be imported:

    TORCHDYNAMO_DISABLE=1 python tests/drafts/specforge/generate.py
"""

import copy
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from specforge.modeling.draft.llama3_eagle import LlamaForCausalLMEagle3, prepare_decoder_attention_mask
from transformers import LlamaConfig

V, H, SLOTS, STEPS = 64, 16, 9, 3
SIZES = {"whole_vocabulary": V, "small_vocabulary": 40}
CONFIG = {
    "architectures": ["LlamaForCausalLMEagle3"], "attention_bias": False, "head_dim": 4, "hidden_act": "silu",
    "hidden_size": H, "intermediate_size": 24, "max_position_embeddings": 128, "num_attention_heads": 4,
    "num_hidden_layers": 1, "num_key_value_heads": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "tie_word_embeddings": False, "vocab_size": V, "pad_token_id": 0,
    "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 3, 4], "use_aux_hidden_state": True},
}  # fmt: skip


@torch.no_grad()
def chain(draft: LlamaForCausalLMEagle3, ids: torch.Tensor, aux: torch.Tensor) -> torch.Tensor:
    """Logits of the steps that its trainer unrolls: states go on as they leave the layer, ids move by one slot."""
    state, cache = draft.project_hidden_states(aux[None]), [[], []]
    mask = prepare_decoder_attention_mask(torch.ones(1, SLOTS, dtype=torch.bool), (1, SLOTS), state, 0)
    logits = []
    for _ in range(STEPS):
        embedded = draft.embed_input_ids(ids[None])
        state = draft.backbone(embedded, state, cache, mask, torch.arange(SLOTS)[None])
        logits.append(draft.compute_logits(state)[0])
        ids = torch.cat([ids[1:], torch.zeros(1, dtype=ids.dtype)])
    return torch.stack(logits)


def main() -> None:
    for name, size in SIZES.items():
        torch.manual_seed(5)
        folder = Path(__file__).parent / name
        shutil.rmtree(folder, ignore_errors=True)
        draft = LlamaForCausalLMEagle3(LlamaConfig(**CONFIG, draft_vocab_size=size)).float().eval()
        for key, weight in draft.named_parameters():
            torch.nn.init.normal_(weight, 1.0 if "norm" in key else 0.0, 0.3)
        chosen = torch.randperm(V)[:size].sort().values
        draft.d2t.copy_(chosen - torch.arange(size))
        draft.t2d.copy_(torch.zeros(V, dtype=torch.bool).index_fill(0, chosen, True))
        ids, aux = torch.randint(V, (SLOTS,)), torch.randn(SLOTS, 3 * H)
        kept = {key: tensor for key, tensor in draft.state_dict().items() if "embed" not in key}
        draft.save_pretrained(folder, state_dict=kept)
        found = {}
        for value in (None, True, False):
            config = copy.deepcopy(draft.config)
            if value is not None:
                config.norm_output = value
            variant = LlamaForCausalLMEagle3(config).float().eval()
            variant.load_state_dict(draft.state_dict())
            found[f"logits.{json.dumps(value)}"] = chain(variant, ids, aux)
        save_file(
            {"embeddings": draft.embed_tokens.weight.data, "ids": ids, "aux": aux, **found}, folder / "io.safetensors"
        )


if __name__ == "__main__":
    main()
