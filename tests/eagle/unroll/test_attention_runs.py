"""The attention of runs against the dense masked one, by every kernel; the CUDA kernel's contract is kept by a twin."""

from itertools import pairwise

import pytest
import torch

from eaglepipe.eagle.unroll import attention_runs, attention_varlen
from eaglepipe.eagle.unroll.attention import ttt_attention
from eaglepipe.eagle.unroll.attention_blocks import _plain_backward, _plain_forward
from eaglepipe.eagle.unroll.attention_runs import run_attention
from eaglepipe.eagle.unroll.attention_varlen import varlen_backward, varlen_forward, varlen_works
from eaglepipe.eagle.unroll.slot_plan import KeySpans, Run, Runs
from tests.eagle.toy_drafts import random_states

CPU = torch.device("cpu")
HEADS, GROUPS, SLOTS, HEAD_DIM, SCALE = 6, 2, 23, 8, 0.4
RUNS = (Run(document=0, first=0, count=4), Run(document=0, first=7, count=5), Run(document=14, first=17, count=3))


def sequences(spans):
    """The queries and the keys of each run, by the tables that the kernel reads."""
    ranges = [list(pairwise(ends.tolist())) for ends in (spans.query_ends, spans.key_ends)]
    for of_each, most in zip(ranges, (spans.most_queries, spans.most_keys), strict=True):
        assert max(end - start for start, end in of_each) <= most
    return [(slice(*of_queries), slice(*of_keys)) for of_queries, of_keys in zip(*ranges, strict=True)]


def twin_scores(query, key, scale):
    """[h, m, s], causal from the last key backwards, as the CUDA kernel aligns its triangle."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = torch.einsum("mhd,shd->hms", query, key) * scale
    queries, keys = scores.shape[1:]
    future = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)
    return scores.masked_fill(future, -torch.inf)


def twin_forward(queries, keys, values, spans, scale):
    outputs, norms = [], []
    for rows, read in sequences(spans):
        scores = twin_scores(queries[rows], keys[read], scale)
        value = values[read].repeat_interleave(queries.shape[1] // values.shape[1], dim=1)
        outputs.append(torch.einsum("hms,shd->mhd", scores.softmax(-1), value))
        norms.append(scores.logsumexp(-1))
    return torch.cat(outputs), torch.cat(norms, dim=1)


def twin_backward(grad_output, queries, keys, values, output, normaliser, spans, scale):
    groups = queries.shape[1] // keys.shape[1]
    grads = [torch.zeros_like(states) for states in (queries, keys, values)]
    for rows, read in sequences(spans):
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


@pytest.fixture(params=["flash", "plain", "varlen"])
def runs(request, monkeypatch):
    spans = None
    if request.param == "plain":
        monkeypatch.setattr("eaglepipe.eagle.unroll.attention_blocks._flash_forward_cpu", _plain_forward)
        monkeypatch.setattr("eaglepipe.eagle.unroll.attention_blocks._flash_backward_cpu", _plain_backward)
    if request.param == "varlen":
        spans = KeySpans.of(RUNS, CPU)
        monkeypatch.setattr(attention_runs, "varlen_works", lambda *_: True)
        monkeypatch.setattr(attention_varlen, "varlen_forward", twin_forward)
        monkeypatch.setattr(attention_varlen, "varlen_backward", twin_backward)
    return Runs(runs=RUNS, spans=spans)


def test_run_attention_equals_dense_attention(runs):
    asked = torch.cat([torch.arange(run.first, run.first + run.count) for run in RUNS])
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
    found = run_attention(queries[asked], *columns, runs, SCALE)
    torch.testing.assert_close(found, dense, rtol=1e-9, atol=1e-9)
    weights = torch.randn_like(dense)
    expected = torch.autograd.grad((dense * weights).sum(), leaves)
    for actual, wanted in zip(torch.autograd.grad((found * weights).sum(), leaves), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-8, atol=1e-9)


def test_spans_name_the_keys_of_each_run_s_document_up_to_its_last_query():
    spans = KeySpans.of(RUNS, CPU)
    assert spans.keys.tolist() == [*range(4), *range(12), *range(14, 20)]
    assert spans.query_ends.tolist() == [0, 4, 9, 12]
    assert spans.key_ends.tolist() == [0, 4, 16, 22]
    assert (spans.most_queries, spans.most_keys) == (5, 12)


def test_no_runs_ask_nothing_of_a_kernel_that_refuses_empty_batches(monkeypatch):
    spans = KeySpans.of((), CPU)
    assert spans.keys.tolist() == [] and spans.query_ends.tolist() == spans.key_ends.tolist() == [0]
    monkeypatch.setattr(attention_runs, "varlen_works", lambda *_: True)
    queries, keys = torch.empty(0, HEADS, HEAD_DIM, requires_grad=True), torch.randn(5, GROUPS, HEAD_DIM)
    found = run_attention(queries, [keys], [keys], Runs(runs=(), spans=spans), SCALE)
    assert found.shape == (0, HEADS, HEAD_DIM)
    found.sum().backward()


def test_this_torch_has_the_varlen_kernel_with_the_arguments_that_are_passed():
    """Shapes and arguments only: torch knows them without the device."""
    spans = KeySpans.of(RUNS, torch.device("meta"))
    queries, keys = torch.empty(12, 6, 8, device="meta"), torch.empty(22, 2, 8, device="meta")
    output, normaliser = varlen_forward(queries, keys, keys, spans, SCALE)
    assert (output.shape, normaliser.shape) == ((12, 6, 8), (6, 12))
    grads = varlen_backward(output, queries, keys, keys, output, normaliser, spans, SCALE)
    assert [grad.shape for grad in grads] == [(12, 6, 8), (22, 2, 8), (22, 2, 8)]


def test_a_cpu_takes_the_run_by_run_kernel():
    assert not varlen_works(CPU, torch.bfloat16, 2, 3, 64)
