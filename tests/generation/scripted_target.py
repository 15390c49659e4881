"""A tiny target that has learnt the turns of all template behaviours by heart, and one folder for each of them."""

from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.generation.template_behaviours import ADDED, BEHAVIOURS, SPECIAL, Behaviour

STEPS = 260

_WORDS = (
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # as Llama 3 cuts text
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_of_words])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(
        [text for each in BEHAVIOURS.values() for turn in each.turns for text in turn], trainer
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in ADDED])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", bos_token="<|begin|>")


def turn_ids(tokenizer: PreTrainedTokenizerFast, behaviour: Behaviour) -> list[tuple[list[int], list[int]]]:
    """The ids of each turn's prompt and answer; one word of an answer is written in single characters.

    No tokenizer would cut it so, and the draft must learn it as it was written.
    """

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    def answer(text: str) -> list[int]:
        before, found, after = text.partition("An elm")
        return ids(before) + [ids(character)[0] for character in found] + ids(after)

    return [(ids(prompt), answer(text)) for prompt, text in behaviour.turns]


def write_targets(root: Path) -> dict[str, Path]:
    """Train one model on all answers and write a folder for each behaviour."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    turns = [turn for behaviour in BEHAVIOURS.values() for turn in turn_ids(tokenizer, behaviour)]
    _learn(model, turns)
    return {name: _write(root / name, model, tokenizer, behaviour) for name, behaviour in BEHAVIOURS.items()}


def _learn(model: LlamaForCausalLM, turns: list[tuple[list[int], list[int]]]) -> None:
    longest = max(len(prompt) + len(answer) for prompt, answer in turns)
    ids = torch.zeros((len(turns), longest), dtype=torch.long)
    labels = torch.full((len(turns), longest), -100)
    for row, (prompt, answer) in enumerate(turns):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    rows, slots = (labels[:, 1:] != -100).nonzero(as_tuple=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3, weight_decay=0.0)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 8e-3 * min(1.0, (step + 1) / 20) * (1 - step / STEPS)
        states = model.model(input_ids=ids).last_hidden_state
        loss = F.cross_entropy(model.lm_head(states[rows, slots]), labels[rows, slots + 1])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if loss.item() < 0.03:
            break


def _write(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, behaviour: Behaviour) -> Path:
    ends = [tokenizer.convert_tokens_to_ids(name) for name in (behaviour.eos, *behaviour.other_ends)]
    model.generation_config = GenerationConfig(eos_token_id=ends)
    model.config.eos_token_id = ends[0]
    model.save_pretrained(folder)
    tokenizer.eos_token, tokenizer.chat_template = behaviour.eos, behaviour.template
    tokenizer.save_pretrained(folder)
    return folder
