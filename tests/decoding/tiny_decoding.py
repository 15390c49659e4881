"""A target and a draft with random weights, small enough to decode with in a test."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from eaglepipe.decoding.drafters import DraftMethod, Proposal, VerifiedSlots
from eaglepipe.decoding.eagle3_steps import PeagleSteps
from eaglepipe.eagle.dflash.config import dflash_config_from_target
from eaglepipe.eagle.dflash.draft import DFlashDraftModel
from eaglepipe.eagle.draft_config import draft_config_from_target
from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from eaglepipe.target.capture import HFEagle3TargetModel
from eaglepipe.target.load import LoadedTarget
from eaglepipe.target.steps.stepping import SteppingTarget
from tests.target.tiny_targets import make_model


def tiny_stepping(vocab: int = 31, *, hidden_size: int = 32, sharpness: float = 4.0) -> SteppingTarget:
    """A Llama of 3 layers; its logits are spread by `sharpness`, so that greedy choices are not near-ties."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden_size,
        intermediate_size=hidden_size,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    model = make_model(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(sharpness)
    target = LoadedTarget(model=model, text_config=config, folder=Path("nowhere"), device=torch.device("cpu"))
    return SteppingTarget(HFEagle3TargetModel(target, [1, 2, 3]))


def tiny_draft(target: SteppingTarget, draft_vocab: int | None = None, **settings: object) -> LlamaEagle3DraftModel:
    """A random draft for it; if `draft_vocab` is smaller, its vocabulary is every other id."""
    config = draft_config_from_target(target.target.text_config, draft_vocab_size=draft_vocab, **settings)
    return _random_draft(LlamaEagle3DraftModel, config)


def tiny_block_draft(target: SteppingTarget, draft_vocab: int | None = None, **settings: object) -> DFlashDraftModel:
    """A random block draft of two layers for it, with a draft vocabulary as in `tiny_draft`."""
    shape = {"block_size": 5, "mask_token_id": 0, "num_hidden_layers": 2, **settings}
    config = dflash_config_from_target(target.target.text_config, draft_vocab_size=draft_vocab, **shape)
    return _random_draft(DFlashDraftModel, config)


def _random_draft(draft_class: type[Any], config: Any) -> Any:
    torch.manual_seed(3)
    draft = draft_class(config).float().eval()
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    if config.draft_vocab_size < config.vocab_size:
        draft.set_vocab_mapping(torch.arange(config.draft_vocab_size) * 2)
    return draft


class ChainedSteps(PeagleSteps):
    """Draft all depths at once, then let each depth's logits depend strongly on the token before it."""

    is_chained = True

    def follow(self, logits: torch.Tensor, previous: torch.Tensor, depth: int) -> torch.Tensor:
        favoured = (previous + depth) % logits.shape[-1]
        return logits + 3.0 * torch.nn.functional.one_hot(favoured, logits.shape[-1])


class OracleDrafter:
    """Proposes the target's own greedy continuation, partly spoilt, among wrong siblings of a tree."""

    def __init__(self, target: SteppingTarget, *, depth: int, siblings: int, spoilt: float) -> None:
        self._target, self._siblings, self._spoilt = target, siblings, spoilt
        self._draws = torch.Generator().manual_seed(11)
        size = depth * (1 + siblings)
        self.method = DraftMethod(drafter="oracle", shape="tree" if siblings else "chain", depth=depth, size=size)

    def begin(self, num_rows: int) -> None: ...

    def extend(self, verified: VerifiedSlots) -> None:
        self._sequences = [list(sequence) for sequence in verified.sequences]

    def select(self, rows: torch.Tensor) -> None:
        self._sequences = [self._sequences[row] for row in rows.tolist()]

    def propose(self, generator: torch.Generator) -> Proposal:
        rows = [self._guesses(sequence) for sequence in self._sequences]
        tokens, parents = zip(*rows, strict=True)
        return Proposal(tokens=torch.tensor(tokens), parents=torch.tensor(parents))

    def _guesses(self, sequence: list[int]) -> tuple[list[int], list[int]]:
        tokens, parents, path = [], [], -1
        for _ in range(self.method.depth):
            right = plain_greedy(self._target, sequence, 1)[0]
            level = [(right + 1 + i) % self._target.target.vocab_size for i in range(self._siblings)]
            index = int(torch.randint(self._siblings + 1, (), generator=self._draws))
            spoilt = float(torch.rand((), generator=self._draws)) < self._spoilt
            level.insert(index, (right + 9) % self._target.target.vocab_size if spoilt else right)
            tokens += level
            parents += [path] * len(level)
            path = len(tokens) - len(level) + index
            sequence = [*sequence, level[index]]
        return tokens, parents


def plain_greedy(target: SteppingTarget, sequence: list[int], count: int) -> list[int]:
    """The target's greedy continuation, every token by a forward over everything before it."""
    sequence, start = list(sequence), len(sequence)
    for _ in range(count):
        ids = torch.tensor([sequence])
        hidden = target.model.capture(ids, torch.ones_like(ids)).last_hidden[0, -1:]
        sequence.append(int(target.model.head_logits(hidden).argmax()))
    return sequence[start:]
