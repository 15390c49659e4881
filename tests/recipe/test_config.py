"""A recipe either describes a run or says everything that is wrong with it at once."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from eaglepipe.errors import ConfigError
from eaglepipe.families import FAMILIES
from eaglepipe.recipe.load import dump_recipe, load_recipe
from eaglepipe.recipe.tree import Recipe

MINIMAL = "name: x\ntarget: {path: t}\ndata: {sources: [{path: d.jsonl}]}\n"

BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefgh"))


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_all_mistakes_are_reported_at_once_with_the_nearest_key(tmp_path: Path) -> None:
    text = (
        "name: x\ntarget: {path: t, dtpe: float32}\ndata: {sources: [{path: d, splt: train}], max_lenght: 5}\n"
        "train: {ttt_steps: 0, learning_rat: 1}\nvocabulary: {}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, text))
    message = str(caught.value)
    assert "6 mistake(s)" in message
    for expected in (
        "target.dtpe: unknown key; did you mean 'dtype'?",
        "data.sources.0.splt: unknown key; did you mean 'split'?",
        "data.max_lenght: unknown key; did you mean 'max_length'?",
        "train.ttt_steps: Input should be greater than 0",
        "train.learning_rat: unknown key; did you mean 'learning_rate'?",
        "vocabulary: unknown key; did you mean 'vocab'?",
    ):
        assert expected in message


def test_missing_sections_and_values_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, "name: x\ntarget: {}\n"))
    assert "target.path: required, and absent" in str(caught.value)
    assert "data: required, and absent" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("train.ttt_steps=3", lambda r: r.train.ttt_steps == 3),
        ("train.learning_rate=1e-3", lambda r: r.train.learning_rate == 1e-3),
        ("cache.aux_layer_ids=[1, 2, 5]", lambda r: r.cache.aux_layer_ids == (1, 2, 5)),
        ("cache.shard_bytes=5MiB", lambda r: r.cache.shard_bytes == 5 * 2**20),
        ("data.sources.0.name=other", lambda r: r.data.sources[0].name == "other"),
        (
            "data.chat_template_kwargs.enable_thinking=false",
            lambda r: r.data.chat_template_kwargs == {"enable_thinking": False},
        ),
        ("vocab.draft_size=", lambda r: r.vocab.draft_size is None),
        ("train.caches=[a, b]", lambda r: [(c.path, c.weight) for c in r.train.caches] == [("a", 1.0), ("b", 1.0)]),
    ],
)
def test_overrides_are_yaml_values_at_any_depth(tmp_path: Path, override: str, read: object) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL), [override])
    assert read(recipe)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.ttt_steps", "section.key=value"),
        ("=3", "section.key=value"),
        ("name.deep=3", "'name' is a value"),
        ("data.sources.7.path=x", "not an index"),
        ("train.ttt_steps=[", "not YAML"),
        ("train.ttt_steps=true", "valid integer"),
        ("train.ttt_steps=2.5", "valid integer"),
        ("target.path=", "valid string"),
        ("name=../x", "name: "),
        ("train.micro_batch_tokens=99999999", "larger than train.batch_tokens"),
        ("train.betas=[0.9, 1.0]", r"train\.betas\.1: Input should be less than 1"),
        ("train.learning_rate=.inf", "finite number"),
        ("train.weight_decay=.nan", "greater than or equal to 0|finite number"),
        ("train.seed=18446744073709551616", r"train\.seed: Input should be less than"),
        ("train.seed=true", "valid integer"),
        ("train.caches=[]", r"train\.caches: Tuple should have at least 1 item"),
        ("cache.shard_bytes=0", r"cache\.shard_bytes: Input should be greater than 0"),
    ],
)
def test_bad_overrides_are_explained(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(write(tmp_path, MINIMAL), [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "mapping of sections"),
        ("", "mapping of sections"),
        ("a: [", "readable YAML"),
        ("name: x\nname: y\n", "'name' is given twice"),
        ("train: {seed: 1, seed: 2}\n", "'seed' is given twice"),
        ("a: !!int abc\n", "readable YAML"),
        ("a: !!bool maybe\n", "readable YAML"),
        ("a: !!timestamp 2026-99-99\n", "readable YAML"),
        ("a: !!python/object/apply:os.system [ls]", "readable YAML"),
        ("name: {{name}}\n", "is no key"),
        ("? [a, b]\n: 1\n", "is no key"),
        ("&a [*a]\n", "nested too deeply"),
        (BOMB, "more than 50,000 values"),
        (BOMB.replace("[", "{<<: [").replace("]", "]}").replace("x, x", "{x: 1}, {y: 1}"), "more than 50,000 values"),
        ("a: [" + "[" * 3000, "nested too deeply"),
        ("#" * 2**20 + "\n", "bytes is no recipe"),
    ],
)
def test_file_that_is_no_recipe_is_told(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(write(tmp_path, text))


def test_sections_may_be_merged_as_yaml_writes_it(tmp_path: Path) -> None:
    text = "name: x\ntarget: {path: t}\ndata: {sources: [&one {path: d, split: test}, {<<: *one, path: e}]}\n"
    sources = load_recipe(write(tmp_path, text)).data.sources
    assert [(source.path, source.split) for source in sources] == [("d", "test"), ("e", "test")]


def test_printed_recipe_reads_back_as_the_same_one(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL), ["cache.aux_layer_ids=[1,2,3]", "train.seed=7"])
    again = load_recipe(write(tmp_path, dump_recipe(recipe)))
    assert again == recipe
    assert isinstance(again, Recipe)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.feature_noise=0.2", "train.feature_noise is 0.2, which train.objective eagle3 ignores"),
        ("draft.mask_token_id=3", "it serves peagle"),
        ("train.objective=eagle1", "needs a cache with cache.last_hidden=all"),
        ("train.lk_decay=2", "train.lk_decay: train.loss ce ignores it (it serves lambda); remove it (given: 2)"),
    ],
)
def test_a_setting_that_the_objective_ignores_is_refused(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_recipe(write(tmp_path, MINIMAL), [override])


def test_a_default_spelled_out_is_no_mistake_under_any_objective(tmp_path: Path) -> None:
    defaults = ["train.ttt_steps=7", "train.step_decay=0.8", "train.feature_noise=0.1", "draft.fc_norm=false"]
    for objective in ("eagle1", "eagle2", "peagle"):
        load_recipe(write(tmp_path, MINIMAL), [f"train.objective={objective}", "train.caches=[a]", *defaults])


def test_eagle1_asks_its_own_cache_for_states_and_head_before_it_is_made(tmp_path: Path) -> None:
    recipe, objective = write(tmp_path, MINIMAL + "vocab: {draft_size: 9}\n"), "train.objective=eagle1"
    load_recipe(recipe, [objective, "cache.last_hidden=all", "cache.full_head=true"])
    load_recipe(recipe, [objective, "cache.last_hidden=all", "vocab.draft_size="])
    with pytest.raises(ConfigError, match=r"eagle1 needs a cache with cache\.full_head=true"):
        load_recipe(recipe, [objective, "cache.last_hidden=all"])


def test_losses_that_drawn_entries_do_not_serve_are_refused_before_the_cache_is_made(tmp_path: Path) -> None:
    recipe, drawn = write(tmp_path, MINIMAL), "cache.supervision=sampled"
    load_recipe(recipe, [drawn, "cache.draws=16", "cache.draw_seed=1"])
    with pytest.raises(ConfigError, match=r"train\.loss=lambda measures acceptance, which entries drawn"):
        load_recipe(recipe, [drawn, "train.loss=lambda"])


def test_a_recipe_holds_the_settings_of_its_own_family_alone(tmp_path: Path) -> None:
    given = write(tmp_path, MINIMAL + "train: {objective: peagle, peagle_depths: 4, caches: [a], step_decay: 0.8}\n")
    printed = dump_recipe(load_recipe(given))
    assert "peagle_depths: 4" in printed and "mask_token_id" in printed
    assert not any(name in printed for name in ("ttt_steps", "step_decay", "feature_noise", "eval_depth"))


def test_an_unknown_objective_is_reported_with_the_other_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, MINIMAL + "train: {objective: eagle4, learning_rat: 1}\nvocabulary: {}\n"))
    message = str(caught.value)
    assert f"train.objective: must be one of {', '.join(FAMILIES)} (given: 'eagle4')" in message
    assert "did you mean 'learning_rate'" in message and "3 mistake(s)" in message


def test_foreign_and_unknown_settings_are_reported_at_once(tmp_path: Path) -> None:
    text = MINIMAL + "train: {objective: eagle2, cod_ratio: 0.5, seed: -1, caches: [a]}\ndraft: {fc_norm: true, x: 1}\n"
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, text))
    for expected in (
        "4 mistake(s)",
        "train.cod_ratio is 0.5, which train.objective eagle2 ignores (it serves peagle); remove it",
        "draft.fc_norm is True, which train.objective eagle2 ignores (it serves eagle3, peagle); remove it",
        "draft.x: unknown key",
        "train.seed: Input should be greater than or equal to 0",
    ):
        assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["target.engine=vlm"], "target.engine: Input should be 'transformers' or 'vllm'"),
        (["target.engine_args.max_num_seqs=8"], "engine_args needs engine: vllm"),
        (["target.engine=vllm", "target.engine_args.dtype=float16"], "engine_args.dtype: set target.dtype"),
        (["target.engine=vllm", "target.engine_args.data_parallel_size=2"], "--workers i/n"),
        (["target.engine=vllm", "target.engine_args.max-model-len=64"], "write it as max_model_len"),
        (["target.engine=vllm", "target.engine_args.max_model_len=1"], "no number of tokens from 2 on"),
        (["target.engine=vllm", "target.engine_args=[1]"], "target.engine_args"),
    ],
)
def test_arguments_of_an_engine_that_the_recipe_has_other_words_for_are_refused(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_recipe(write(tmp_path, MINIMAL), overrides)


def test_arguments_of_an_engine_pass_as_they_are_given(tmp_path: Path) -> None:
    args = {"tensor_parallel_size": 2, "hf_overrides": {"rope_theta": 1.0}, "quantization": "fp8"}
    recipe = load_recipe(write(tmp_path, MINIMAL), ["target.engine=vllm", f"target.engine_args={args}"])
    assert recipe.target.engine_args == args
    again = load_recipe(write(tmp_path, dump_recipe(recipe)))
    assert again == recipe
