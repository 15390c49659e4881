import numpy as np
import pytest
import torch
from transformers import DynamicCache

from eaglepipe.generation.answering import Sampling
from eaglepipe.generation.generate import generate
from eaglepipe.target.steps.kv_cache import RoomyLayer, make_cache
from tests.target.tiny_targets import CONFIGS, VOCAB, tiny_target

NEVER = frozenset({VOCAB})
PROMPTS = [np.arange(3, 3 + length, dtype=np.int32) for length in (9, 2, 14, 5)]


def fresh(seed=0):
    return torch.Generator().manual_seed(seed)


def by_transformers(target, prompt, max_new_tokens):
    """Alone, unpadded, stopping never."""
    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    output = target.model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=VOCAB
    )
    return output[0, len(prompt) :].tolist()


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("name", ["llama", "qwen3-moe", "gpt-oss", "gemma2", "phi3", "gpt2"])
def test_greedy_batches_equal_transformers_one_prompt_at_a_time(name, tmp_path):
    target = tiny_target(name, tmp_path)
    answers = generate(target, PROMPTS, Sampling(max_new_tokens=12), NEVER, fresh())
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert answer.token_ids.tolist() == by_transformers(target, prompt, 12)
        assert not answer.ended and answer.finite


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_target("llama", tmp_path_factory.mktemp("llama"))


def test_rows_end_at_their_own_stop_token_and_the_others_go_on(llama):
    whole = [by_transformers(llama, prompt, 20) for prompt in PROMPTS]
    stops = frozenset({whole[0][2], whole[1][9]})
    answers = generate(llama, PROMPTS, Sampling(max_new_tokens=20), stops, fresh())
    for tokens, answer in zip(whole, answers, strict=True):
        expected = next((tokens[: step + 1] for step, token in enumerate(tokens) if token in stops), tokens)
        assert answer.token_ids.tolist() == expected
        assert answer.ended == (len(expected) < len(tokens))


def test_equal_generators_draw_equal_answers_and_others_differ(llama):
    sampling = Sampling(max_new_tokens=15, temperature=1.5)
    draws = [generate(llama, PROMPTS, sampling, NEVER, fresh(seed)) for seed in (1, 1, 2)]
    first, again, other = [[answer.token_ids.tolist() for answer in answers] for answers in draws]
    assert first == again != other


def test_a_tiny_nucleus_is_greedy(llama):
    nucleus = Sampling(max_new_tokens=10, temperature=1.0, top_p=1e-6)
    answers = generate(llama, PROMPTS, nucleus, NEVER, fresh())
    assert [answer.token_ids.tolist() for answer in answers] == [by_transformers(llama, p, 10) for p in PROMPTS]


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_draws_follow_the_softmax_inside_the_nucleus(llama, top_p):
    draws = 6000
    sampling = Sampling(max_new_tokens=1, temperature=0.5, top_p=top_p)
    answers = generate(llama, [PROMPTS[0]] * draws, sampling, NEVER, fresh())
    with torch.no_grad():
        logits = llama.model(torch.from_numpy(PROMPTS[0].astype(np.int64))[None]).logits[0, -1]
    expected = (logits / 0.5).softmax(0).numpy()
    order = np.argsort(-expected)
    inside = order[: int(np.searchsorted(expected[order].cumsum(), top_p)) + 1]
    nucleus = np.zeros_like(expected)
    nucleus[inside] = expected[inside] / expected[inside].sum()
    drawn = np.bincount([int(answer.token_ids[0]) for answer in answers], minlength=VOCAB) / draws
    assert not drawn[nucleus == 0].any()
    assert np.abs(drawn - nucleus).max() < 5 * np.sqrt(0.25 / draws)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_meets_nan_ends_as_not_finite_and_spoils_no_other(temperature, tmp_path):
    target = tiny_target("llama", tmp_path)
    with torch.no_grad():
        target.model.get_input_embeddings().weight[60] = float("nan")
    poisoned = np.array([5, 60, 7], dtype=np.int32)
    answers = generate(
        target, [*PROMPTS[:2], poisoned], Sampling(max_new_tokens=4, temperature=temperature), NEVER, fresh()
    )
    assert [answer.finite for answer in answers] == [True, True, False]
    assert len(answers[2].token_ids) == 0 and len(answers[0].token_ids) == 4


def test_a_roomy_layer_holds_what_a_concatenating_one_does():
    roomy, plain = RoomyLayer(), DynamicCache(config=CONFIGS["llama"]).layers[0]
    generator = torch.Generator().manual_seed(0)
    for step, count in enumerate([3, 1, 40, 1, 1, 70, 1]):
        rows = plain.keys.shape[0] if step else 5
        new = [torch.randn(rows, 2, count, 4, generator=generator) for _ in range(2)]
        for mine, theirs in zip(roomy.update(*new), plain.update(*new), strict=True):
            assert torch.equal(mine, theirs)
        if step % 2:
            kept = torch.arange(0, rows, 2) if rows > 2 else torch.arange(rows)
            roomy.batch_select_indices(kept)
            plain.batch_select_indices(kept)
            assert torch.equal(roomy.keys, plain.keys) and roomy.get_seq_length() == plain.get_seq_length()


def test_only_plain_layers_are_replaced():
    kinds = {type(layer).__name__ for layer in make_cache(CONFIGS["gemma2"]).layers}
    assert kinds == {"RoomyLayer", "DynamicSlidingWindowLayer"}
