from pathlib import Path

import pytest
import torch

from eaglepipe.errors import TargetError
from eaglepipe.target.capture import HFEagle3TargetModel
from eaglepipe.target.steps.stepping import SteppingTarget
from tests.target.tiny_targets import CONFIGS, tiny_target

LOWER = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]], dtype=torch.bool)
"""A root with two children, the second with one of its own."""


def stepping(name: str, folder: Path) -> SteppingTarget:
    return SteppingTarget(HFEagle3TargetModel(tiny_target(name, folder), [2, 3, 4]))


def plain_logits(target: SteppingTarget, sequence: list[int]) -> torch.Tensor:
    ids = torch.tensor([sequence])
    return target.model.head_logits(target.model.capture(ids, torch.ones_like(ids)).last_hidden[0, -1:])[0]


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_rows_that_kept_different_paths_go_on_as_plain_sequences(name: str, tmp_path: Path) -> None:
    target = stepping(name, tmp_path)
    generator = torch.Generator().manual_seed(1)
    prompts, lengths = torch.randint(3, 60, (3, 3), generator=generator), [3, 1, 2]
    sequences = [row[:length].tolist() for row, length in zip(prompts, lengths, strict=True)]
    read = target.read_prompts(prompts, torch.tensor(lengths))
    for row, sequence in enumerate(sequences):
        torch.testing.assert_close(read.logits[row, 0], plain_logits(target, sequence), rtol=1e-4, atol=1e-4)
    tree = torch.randint(3, 60, (3, 4), generator=generator)
    target.read(tree, LOWER.expand(3, -1, -1))
    paths = [[0, 2, 3], [0, 1], [0]]
    nodes = torch.tensor([path + [0] * (3 - len(path)) for path in paths])
    target.keep(nodes, torch.tensor([len(path) for path in paths]))
    target.select(torch.tensor([2, 0]))
    new = torch.randint(3, 60, (2, 1), generator=generator)
    read = target.read(new, torch.ones(2, 1, 1, dtype=torch.bool))
    for place, row in enumerate([2, 0]):
        whole = sequences[row] + [int(tree[row, node]) for node in paths[row]] + [int(new[place, 0])]
        torch.testing.assert_close(read.logits[place, 0], plain_logits(target, whole), rtol=1e-4, atol=1e-4)


def test_every_node_of_a_tree_is_read_as_the_end_of_its_own_path(tmp_path: Path) -> None:
    target = stepping("llama", tmp_path)
    target.read_prompts(torch.tensor([[5, 6, 7]]), torch.tensor([3]))
    tree = torch.tensor([[8, 9, 10, 11]])
    logits = target.read(tree, LOWER[None]).logits[0]
    for node in range(4):
        path = [5, 6, 7, *tree[0, LOWER[node]].tolist()]
        torch.testing.assert_close(logits[node], plain_logits(target, path), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt-oss", "gemma2", "gemma3", "cohere2"])
def test_layers_with_a_window_forget_what_lies_outside_it(name: str, tmp_path: Path) -> None:
    target = stepping(name, tmp_path)
    sequence = torch.randint(3, 60, (20,), generator=torch.Generator().manual_seed(2)).tolist()
    target.read_prompts(torch.tensor([sequence[:10]]), torch.tensor([10]))
    for length in range(11, 21):
        read = target.read(torch.tensor([[sequence[length - 1]]]), torch.ones(1, 1, 1, dtype=torch.bool))
        target.keep(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, dtype=torch.int64))
        torch.testing.assert_close(read.logits[0, 0], plain_logits(target, sequence[:length]), rtol=1e-4, atol=1e-4)


def test_a_window_that_no_mask_can_be_given_for_bounds_the_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eaglepipe.target.steps.stepping._MAX_PROBED_WINDOW", 4)
    target = stepping("gpt-oss", tmp_path)
    with pytest.raises(TargetError, match="exactly up to 8"):
        target.check_room(9)


def test_an_attention_that_ignores_its_mask_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = HFEagle3TargetModel.run

    def run_without_mask(self: HFEagle3TargetModel, input_ids: torch.Tensor, **inputs: object) -> object:
        return run(self, input_ids, **{**inputs, "attention_mask": None})

    monkeypatch.setattr(HFEagle3TargetModel, "run", run_without_mask)
    with pytest.raises(TargetError, match="ignores the mask"):
        stepping("llama", tmp_path)
