"""The attention of spans against the dense masked one, by every kernel; a twin keeps the CUDA kernel's contract."""

from itertools import pairwise

import pytest
import torch

from eaglepipe.eagle.unroll import attention, span_tables
from eaglepipe.eagle.unroll.attention.blocks import Attended, _plain_backward, _plain_forward
from eaglepipe.eagle.unroll.attention.plain import ttt_attention
from eaglepipe.eagle.unroll.attention.spans import span_attention
from eaglepipe.eagle.unroll.attention.varlen import varlen_backward, varlen_forward, varlen_works
from eaglepipe.eagle.unroll.span_tables import PADDED_KEYS, SHORT_SCORES, SlotSpan, SpanGroups, StepSpans, VarlenTables
from tests.eagle.toy_drafts import random_states

CPU = torch.device("cpu")
HEADS, GROUPS, SLOTS, HEAD_DIM, SCALE = 6, 2, 23, 8, 0.4
SPANS = tuple(SlotSpan(document=d, first=f, count=c) for d, f, c in ((0, 0, 4), (0, 7, 5), (14, 17, 3)))


def sequences(tables):
    """The queries and the keys of each span, by the tables that the kernel reads."""
    ranges = [list(pairwise(ends.tolist())) for ends in (tables.query_ends, tables.key_ends)]
    for of_each, most in zip(ranges, (tables.max_queries, tables.max_keys), strict=True):
        assert max(end - start for start, end in of_each) <= most
    return [(slice(*of_queries), slice(*of_keys)) for of_queries, of_keys in zip(*ranges, strict=True)]


def twin_scores(query, key, scale):
    """[h, m, s], causal from the last key backwards, as the CUDA kernel aligns its triangle."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = torch.einsum("mhd,shd->hms", query, key) * scale
    queries, keys = scores.shape[1:]
    future = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)
    return scores.masked_fill(future, -torch.inf)


def twin_forward(queries, keys, values, tables, scale):
    outputs, norms = [], []
    for rows, read in sequences(tables):
        scores = twin_scores(queries[rows], keys[read], scale)
        value = values[read].repeat_interleave(queries.shape[1] // values.shape[1], dim=1)
        outputs.append(torch.einsum("hms,shd->mhd", scores.softmax(-1), value))
        norms.append(scores.logsumexp(-1))
    return torch.cat(outputs), torch.cat(norms, dim=1)


def twin_backward(grad_output, attended, tables, scale):
    queries, keys, values, output, normaliser = attended
    groups = queries.shape[1] // keys.shape[1]
    grads = [torch.zeros_like(states) for states in (queries, keys, values)]
    for rows, read in sequences(tables):
        weights = (twin_scores(queries[rows], keys[read], scale) - normaliser[:, rows, None]).exp()
        key, value = (states[read].repeat_interleave(groups, dim=1) for states in (keys, values))
        of_output = torch.einsum("mhd,shd->hms", grad_output[rows], value)
        delta = (grad_output[rows] * output[rows]).sum(-1).T[..., None]
        of_scores = weights * (of_output - delta) * scale
        grads[0][rows] = torch.einsum("hms,shd->mhd", of_scores, key)
        for grad, of_heads in (
            (grads[1], torch.einsum("hms,mhd->shd", of_scores, queries[rows])),
            (grads[2], torch.einsum("hms,mhd->shd", weights, grad_output[rows])),
        ):
            grad[read] = of_heads.unflatten(1, (-1, groups)).sum(2)
    return tuple(grads)


@pytest.fixture(params=["flash", "padded", "padded, one span alone", "plain", "plain, two queries at once", "varlen"])
def spans(request, monkeypatch):
    tables, groups = None, None
    if request.param == "padded, one span alone":
        monkeypatch.setattr(span_tables, "SHORT_SCORES", 20)
    if request.param.startswith("padded"):
        groups = SpanGroups.of(SPANS)
        assert len(groups.others) == (request.param != "padded")
    if request.param.startswith("plain, "):
        monkeypatch.setattr("eaglepipe.eagle.unroll.attention.blocks.queries_at_once", lambda *_: 2)
    if request.param.startswith("plain"):
        monkeypatch.setattr("eaglepipe.eagle.unroll.attention.blocks.flash_forward_cpu", _plain_forward)
        monkeypatch.setattr("eaglepipe.eagle.unroll.attention.blocks.flash_backward_cpu", _plain_backward)
    if request.param == "varlen":
        tables = VarlenTables.of(SPANS, CPU)
        monkeypatch.setattr(attention.spans, "varlen_works", lambda *_: True)
        monkeypatch.setattr(attention.varlen, "varlen_forward", twin_forward)
        monkeypatch.setattr(attention.varlen, "varlen_backward", twin_backward)
    return StepSpans(spans=SPANS, tables=tables, groups=groups)


def test_span_attention_equals_dense_attention(spans):
    asked = torch.cat([torch.arange(span.first, span.first + span.count) for span in SPANS])
    queries = random_states(SLOTS, HEADS, HEAD_DIM, seed=0)
    keys = [random_states(SLOTS, GROUPS, HEAD_DIM, seed=step + 1) for step in range(3)]
    values = [random_states(SLOTS, GROUPS, HEAD_DIM, seed=step + 11) for step in range(3)]
    leaves = (queries, *keys, *values)
    mask = torch.ones(SLOTS, SLOTS, dtype=torch.bool).tril()
    mask[14:, :14] = False
    dense = ttt_attention(
        queries.transpose(0, 1)[None],
        [key.transpose(0, 1)[None] for key in keys],
        [value.transpose(0, 1)[None] for value in values],
        mask[None, None],
        SCALE,
    )[0].transpose(0, 1)[asked]
    columns = [[keys[0], *(key[asked] for key in keys[1:])], [values[0], *(value[asked] for value in values[1:])]]
    found = span_attention(queries[asked], *columns, spans, SCALE)
    torch.testing.assert_close(found, dense, rtol=1e-9, atol=1e-9)
    weights = torch.randn_like(dense)
    expected = torch.autograd.grad((dense * weights).sum(), leaves)
    for actual, wanted in zip(torch.autograd.grad((found * weights).sum(), leaves), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-8, atol=1e-9)


def test_spans_name_the_keys_of_each_span_s_document_up_to_its_last_query():
    tables = VarlenTables.of(SPANS, CPU)
    assert tables.keys.tolist() == [*range(4), *range(12), *range(14, 20)]
    assert tables.query_ends.tolist() == [0, 4, 9, 12]
    assert tables.key_ends.tolist() == [0, 4, 16, 22]
    assert (tables.max_queries, tables.max_keys) == (5, 12)


def test_groups_take_each_span_once_and_bound_their_padding():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 200, (40,), generator=generator).tolist()
    spans = [
        SlotSpan(document=first, first=first + length // 3, count=length - length // 3)
        for first, length in zip(range(0, 40 * 200, 200), lengths, strict=True)
    ]
    groups = SpanGroups.of(spans)
    rows = [row for group in groups.short for row in group.query_rows.tolist()]
    rows += [row + query for row, span in groups.others for query in range(span.count)]
    assert sorted(rows) == list(range(sum(span.count for span in spans)))
    assert all(span.count * (span.first + span.count - span.document) > SHORT_SCORES for _, span in groups.others)
    for group in groups.short:
        real = torch.bincount(group.query_places // group.queries.shape[1]) @ torch.bincount(
            group.key_places // group.keys.shape[1]
        )
        assert group.mask.numel() <= max(2 * real, real + SHORT_SCORES)
    assert SpanGroups.of(spans[:1]) is None


def test_few_queries_at_the_end_of_long_documents_copy_no_more_keys_than_a_bound():
    late = [SlotSpan(document=0, first=4000 + 20 * turn, count=2) for turn in range(50)]
    assert SpanGroups.of(late) is None  # each would copy the whole document
    near = [SlotSpan(document=0, first=400 + turn, count=1) for turn in range(100)]
    groups = SpanGroups.of(near).short
    assert len(groups) > 1 and max(group.keys.numel() for group in groups) <= PADDED_KEYS


def test_no_spans_ask_nothing_of_a_kernel_that_refuses_empty_batches(monkeypatch):
    tables = VarlenTables.of((), CPU)
    assert tables.keys.tolist() == [] and tables.query_ends.tolist() == tables.key_ends.tolist() == [0]
    monkeypatch.setattr(attention.spans, "varlen_works", lambda *_: True)
    queries, keys = torch.empty(0, HEADS, HEAD_DIM, requires_grad=True), torch.randn(5, GROUPS, HEAD_DIM)
    found = span_attention(queries, [keys], [keys], StepSpans(spans=(), tables=tables), SCALE)
    assert found.shape == (0, HEADS, HEAD_DIM)
    found.sum().backward()


def test_this_torch_has_the_varlen_kernel_with_the_arguments_that_are_passed():
    """Shapes and arguments only: torch knows them without the device."""
    tables = VarlenTables.of(SPANS, torch.device("meta"))
    queries, keys = torch.empty(12, 6, 8, device="meta"), torch.empty(22, 2, 8, device="meta")
    output, normaliser = varlen_forward(queries, keys, keys, tables, SCALE)
    assert (output.shape, normaliser.shape) == ((12, 6, 8), (6, 12))
    grads = varlen_backward(output, Attended(queries, keys, keys, output, normaliser), tables, SCALE)
    assert [grad.shape for grad in grads] == [(12, 6, 8), (22, 2, 8), (22, 2, 8)]


def test_a_cpu_takes_the_span_by_span_kernel():
    assert not varlen_works(CPU, torch.bfloat16, 2, 3, 64)
