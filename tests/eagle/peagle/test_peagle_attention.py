"""The visibility mask: against explicit loops, in blocks, and the dense attention against flex_attention."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention

from eaglepipe.eagle import peagle_attention, peagle_draft
from eaglepipe.eagle.peagle_attention import PeagleMask, create_peagle_mask_mod, dense_attention, make_elements

LENGTHS = (40, 1, 9, 80)


def sampled(seed: int = 0, padding: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Anchors, depths, lengths and total length of documents with random chains, and of padding slots."""
    generator = torch.Generator().manual_seed(seed)
    anchors, depths, start = [], [], 0
    for length in LENGTHS:
        chains = torch.randint(1, 5, (length,), generator=generator)
        slots = torch.arange(length) + start
        anchors += [slots, *(slot.repeat(count - 1) for slot, count in zip(slots, chains, strict=True))]
        depths += [torch.zeros(length, dtype=torch.int64), *(torch.arange(1, count) for count in chains)]
        start += length
    anchors.append(torch.arange(padding) + start)
    depths.append(torch.zeros(padding, dtype=torch.int64))
    return torch.cat(anchors), torch.cat(depths), torch.tensor(LENGTHS), start + padding


def expected_visibility(anchors, depths, lengths, total):
    documents = [index for index, length in enumerate(lengths.tolist()) for _ in range(length)]
    documents += [None] * (total - len(documents))
    elements = [(documents[a], a, d) for a, d in zip(anchors.tolist(), depths.tolist(), strict=True)]
    visible = torch.zeros(len(elements), len(elements), dtype=torch.bool)
    for query, (document, anchor, depth) in enumerate(elements):
        for key, (other_document, other_anchor, other_depth) in enumerate(elements):
            if document is None or document != other_document:
                continue
            before = other_depth == 0 and anchor >= other_anchor
            visible[query, key] = before or (anchor == other_anchor and depth >= other_depth)
    return visible


def build(*batch) -> PeagleMask:
    anchors, depths, lengths, total = batch
    elements = make_elements(anchors, depths, lengths, total)
    return PeagleMask(queries=elements, keys=elements)


def states(num_elements, heads=4, seed=1, size=8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, heads, num_elements, size, generator=generator)


def test_mask_mod_and_chunks_equal_an_explicit_visibility_loop():
    batch = sampled(padding=3)
    expected = expected_visibility(*batch)
    size = len(expected)
    assert torch.equal(
        create_mask(create_peagle_mask_mod(*batch), None, None, size, size, device="cpu")[0, 0], expected
    )
    dense = torch.zeros_like(expected)
    for chunk in build(*batch).chunks:
        visible = chunk.visible if chunk.blind is None else chunk.visible & ~chunk.blind
        dense[chunk.queries.start : chunk.queries.stop, chunk.keys] = visible
    assert torch.equal(dense, expected)


def test_elements_in_any_order_see_the_same(monkeypatch):
    monkeypatch.setattr(peagle_attention, "DENSE_QUERIES", 50)
    anchors, depths, lengths, total = sampled()
    order = torch.randperm(len(anchors), generator=torch.Generator().manual_seed(3))
    q, k, v = states(len(anchors)), states(len(anchors), 2, 2), states(len(anchors), 2, 3)
    straight = dense_attention(q, k, v, build(anchors, depths, lengths, total).chunks, 0.3)
    mask = build(anchors[order], depths[order], lengths, total)
    shuffled = dense_attention(q[:, :, order], k[:, :, order], v[:, :, order], mask.chunks, 0.3)
    torch.testing.assert_close(shuffled, straight[:, :, order])


@pytest.mark.parametrize("padding", [0, 3])
def test_dense_attention_equals_flex_attention(padding):
    batch = sampled(padding=padding)
    mask = build(*batch)
    q, k, v = states(len(batch[0])), states(len(batch[0]), 2, 2), states(len(batch[0]), 2, 3)
    flexed = flex_attention(q, k, v, block_mask=mask.block_mask, scale=0.3, enable_gqa=True)
    dense = peagle_draft._peagle_flex_attention(q, k, v, mask, 0.3)
    torch.testing.assert_close(dense, flexed, rtol=1e-5, atol=1e-6)
    assert (dense[:, :, len(batch[0]) - padding :] == 0).all()
    plain = create_block_mask(create_peagle_mask_mod(*batch), None, None, q.shape[2], q.shape[2], device="cpu")
    torch.testing.assert_close(peagle_draft._peagle_flex_attention(q, k, v, plain, 0.3), dense)


def test_chosen_queries_attend_as_they_do_among_all():
    batch = sampled()
    q, k, v = states(len(batch[0])), states(len(batch[0]), 2, 2), states(len(batch[0]), 2, 3)
    places = torch.arange(5, len(batch[0]), 7)
    some = build(*batch).of_queries(places)
    everything = peagle_draft._peagle_flex_attention(q, k, v, build(*batch), 0.3)
    chosen = peagle_draft._peagle_flex_attention(q[:, :, places], k, v, some, 0.3)
    torch.testing.assert_close(chosen, everything[:, :, places])
    flexed = flex_attention(q[:, :, places], k, v, block_mask=some.block_mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(flexed, chosen, rtol=1e-5, atol=1e-6)


def test_gradients_of_the_dense_attention_are_those_of_a_written_out_softmax():
    batch = sampled()
    visible = expected_visibility(*batch)
    tensors = [states(len(visible), heads, seed).double().requires_grad_() for heads, seed in ((4, 1), (2, 2), (2, 3))]
    weights = states(len(visible), 4, 9).double()
    q, k, v = tensors
    (peagle_draft._peagle_flex_attention(q, k, v, build(*batch), 0.3) * weights).sum().backward()
    actual = [tensor.grad.clone() for tensor in tensors]
    for tensor in tensors:
        tensor.grad = None
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = (q @ k.transpose(-1, -2) * 0.3).masked_fill(~visible, -torch.inf)
    ((scores.softmax(-1) @ v) * weights).sum().backward()
    for tensor, gradient in zip(tensors, actual, strict=True):
        torch.testing.assert_close(gradient, tensor.grad)


def test_blocks_hold_everything_visible_and_leave_out_most_of_what_is_not(monkeypatch):
    monkeypatch.setattr(peagle_attention, "BLOCK_ELEMENTS", 16)
    batch = sampled(padding=5)
    mask = build(*batch)
    exact = create_block_mask(
        create_peagle_mask_mod(*batch), None, None, len(batch[0]), len(batch[0]), device="cpu", BLOCK_SIZE=16
    )
    made, needed = (blocks.to_dense()[0, 0].bool() for blocks in (mask.block_mask, exact))
    assert not (needed & ~made).any()
    assert made.sum() <= 1.25 * needed.sum()


def test_a_failed_compilation_is_told_once_and_the_eager_kernel_runs(monkeypatch, caplog):
    from torch._dynamo.exc import TorchDynamoException

    class FakeCuda(torch.Tensor):
        """A CPU tensor that calls itself one of CUDA, to reach the branch."""

        device = torch.device("cuda")
        is_cuda = True

    calls = []

    def compiled(*_, **__):
        calls.append(1)
        raise TorchDynamoException("no such lowering")

    monkeypatch.setattr(peagle_draft, "_peagle_flex_attention_compiled", lambda: compiled)
    monkeypatch.setattr(peagle_draft, "_peagle_flex_attention_compile_failed", False)
    monkeypatch.setattr(peagle_draft, "flex_attention", lambda q, *_, **__: q)
    tensors = [states(4, size=16).as_subclass(FakeCuda) for _ in range(3)]
    with caplog.at_level("WARNING", logger=peagle_draft.logger.name):
        for _ in range(2):
            peagle_draft._peagle_flex_attention(*tensors, build(*sampled()), 0.3)
    assert len(calls) == 1 and len(caplog.records) == 1
    assert peagle_draft._peagle_flex_attention_compile_failed


def test_only_cuda_tensors_of_one_dtype_and_wide_heads_are_compiled():
    supported = peagle_draft._peagle_compile_supported
    q = torch.zeros(1, 4, 8, 32)
    assert not supported(q, q, q)
    if torch.cuda.is_available():
        q = q.cuda()
        assert supported(q, q, q)
        assert not supported(q, q.half(), q)
        assert not supported(q[..., :8], q[..., :8], q[..., :8])
