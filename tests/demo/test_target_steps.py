"""The target's optimizer step: micro-batches side by side and matrices stacked, against one at a time."""

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from eaglepipe.demo.muon import Muon, orthogonalize
from eaglepipe.demo.target import accumulate_gradients, side_by_side
from eaglepipe.demo.target_data import Example, MicroBatch, collate


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_micro_batches_side_by_side_leave_the_gradients_of_the_whole_step(two_threads: None) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
    )
    lengths = (5, 9, 12, 7)
    examples = [Example(input_ids=torch.randint(1, 50, (n,)), is_answer=torch.rand(n) < 0.5) for n in lengths]
    batch = [collate(examples[:1]), collate(examples[1:3]), collate(examples[3:])]
    with side_by_side(len(batch)) as pool:
        loss = accumulate_gradients(model, batch, pool)
    found = {name: parameter.grad for name, parameter in model.named_parameters()}

    model.zero_grad()
    whole = torch.cat([_losses(model, micro) for micro in batch]).mean()
    torch.autograd.backward(whole)
    assert loss == pytest.approx(whole.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-7)


def _losses(model: LlamaForCausalLM, micro: MicroBatch) -> torch.Tensor:
    logits = model(input_ids=micro.input_ids).logits[:, :-1]
    return F.cross_entropy(logits[micro.is_label], micro.input_ids[:, 1:][micro.is_label], reduction="none")


def test_the_threads_of_operators_are_as_before_afterwards(two_threads: None) -> None:
    with side_by_side(4) as pool:
        assert list(pool.map(lambda _: torch.get_num_threads(), range(4))) == [1] * 4
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (7, 7)])
def test_orthogonalized_matrices_keep_their_singular_vectors(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    for matrix, found in zip(matrices, orthogonalize(matrices), strict=True):
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        in_its_basis = left.T @ found @ right.T
        values = in_its_basis.diagonal()
        assert ((values > 0.6) & (values < 1.3)).all()
        torch.testing.assert_close(in_its_basis, values.diag(), rtol=0, atol=1e-4)


def test_matrices_of_one_shape_are_updated_as_each_alone() -> None:
    generator = torch.Generator().manual_seed(2)
    shapes = [(6, 4), (4, 6), (6, 4), (6, 4)]
    together = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    alone = [torch.nn.Parameter(parameter.detach().clone()) for parameter in together]
    one = Muon(together, weight_decay=0.1)
    each = [Muon([parameter], weight_decay=0.1) for parameter in alone]
    for _ in range(3):
        for ours, theirs in zip(together, alone, strict=True):
            ours.grad = torch.randn(ours.shape, generator=generator)
            theirs.grad = ours.grad.clone()
        one.step(0.05)
        for optimizer in each:
            optimizer.step(0.05)
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
