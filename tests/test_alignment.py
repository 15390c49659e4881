"""Spec sections 2 and 3 on one hand-written two-turn conversation, token by token, from text to training batch."""

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eaglepipe.cache.reader import Cache
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.load import parse_recipe
from eaglepipe.training.data.collate import pack_documents

WORDS = ["<b>", "<e>", "<u>", "<a>", "who", "are", "you", "i", "am", "the", "target", "and", "now", "still", "me"]
TEMPLATE = (
    "<b> {% for m in messages %}{% if m.role != 'assistant' %}<u> {{ m.content }} <e> "
    "{% else %}<a> {% generation %}{{ m.content }} <e> {% endgeneration %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<a> {% endif %}"
)
MESSAGES = [
    {"role": "user", "content": "who are you"},
    {"role": "assistant", "content": "i am the target"},
    {"role": "user", "content": "and now"},
    {"role": "assistant", "content": "still me"},
]
# Token, whether it is the assistant's (m), whether its row is supervised (s): where tokens i and i+1 are of one
# assistant turn, so neither at the header before a turn nor at the end-of-turn.
TABLE = """
    <b>      0 0
    <u>      0 0
    who      0 0
    are      0 0
    you      0 0
    <e>      0 0
    <a>      0 0
    i        1 1
    am       1 1
    the      1 1
    target   1 1
    <e>      1 0
    <u>      0 0
    and      0 0
    now      0 0
    <e>      0 0
    <a>      0 0
    still    1 1
    me       1 1
    <e>      1 0
"""
TOKENS, LOSS, SUPERVISED = zip(*(line.split() for line in TABLE.strip().splitlines()), strict=True)


def make_target(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<b>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<b>", eos_token="<e>", additional_special_tokens=["<u>", "<a>"],
        chat_template=TEMPLATE,
    )  # fmt: skip
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=7, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def test_rows_masks_and_shift_of_a_two_turn_conversation(tmp_path: Path) -> None:
    make_target(tmp_path / "target")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": MESSAGES}) + "\n")
    recipe = parse_recipe(
        {
            "name": "two-turns",
            "target": {"path": str(tmp_path / "target")},
            "data": {"sources": [{"path": str(tmp_path / "rows.jsonl")}]},
            "vocab": {"draft_size": 9},
            "cache": {
                "root": str(tmp_path / "caches"),
                "profile": "exact",
                "aux_layer_ids": [2, 3, 4],
                "aux_codec": "fp32",
            },
        }
    )
    cache = Cache.open(Path(run_precompute(recipe, report=lambda _: None).folder))
    row = cache.read(0)
    ids = [WORDS.index(token) for token in TOKENS]
    loss_mask, supervised = np.array(LOSS) == "1", np.array(SUPERVISED) == "1"
    assert row.input_ids.tolist() == ids
    assert row.loss_mask.tolist() == loss_mask.tolist()
    assert row.supervised.tolist() == supervised.tolist()

    model = LlamaForCausalLM.from_pretrained(tmp_path / "target").eval()
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    top1 = logits.argmax(-1).numpy()
    inside = np.isin(top1, cache.vocab.selected_token_ids.numpy())
    assert row.target_top1.tolist() == np.where(supervised, top1, -1).tolist()
    assert row.position_mask.tolist() == (supervised & inside).tolist()

    batch = pack_documents(((row,),)).batch
    shifted = [*ids[1:], 0]
    assert batch.input_ids[0].tolist() == shifted
    assert batch.loss_mask[0].tolist() == [*supervised[1:].tolist(), False]
    assert batch.position_mask[0].tolist() == [*(supervised & inside)[1:].tolist(), False]
    assert batch.attention_mask[0].tolist() == [True] * len(ids)
    assert batch.position_ids[0].tolist() == list(range(len(ids)))
    assert batch.seq_lens[0].tolist() == [len(ids)]
    assert batch.doc_remaining[0].tolist() == list(range(len(ids) - 1, -1, -1))
    # Slot 6 holds aux of "<a>", the embedding of "i", and what the target says after "i": the first drafted token.
    assert (batch.input_ids[0, 6].item(), batch.loss_mask[0, 6].item()) == (WORDS.index("i"), True)
    # The last slot of a turn that is supervised predicts its end-of-turn.
    assert batch.loss_mask[0, 9].item() is True and batch.loss_mask[0, 10].item() is False
