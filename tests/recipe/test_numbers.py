"""Numbers of a recipe: a setting refuses what is no number of its kind, in a line that names it."""

from pathlib import Path

import pytest

from eaglepipe.errors import ConfigError
from eaglepipe.recipe.load import load_recipe

COUNTS = (
    *("data.max_length", "cache.max_entries", "precompute.batch_tokens", "precompute.queue_batches"),
    *("draft.num_hidden_layers", "draft.hidden_size", "draft.head_dim", "draft.intermediate_size"),
    *("train.epochs", "train.max_steps", "train.ttt_steps", "train.eval_depth", "train.prefetch_batches"),
    *("train.micro_batch_tokens", "train.keep_checkpoints", "train.seed"),
)
FRACTIONS = ("data.max_drop_fraction", "cache.tolerance", "train.warmup_ratio", "train.step_decay")
REALS = ("train.learning_rate", "train.weight_decay", "train.lk_scale")
NO_NUMBER = (".nan", "-.inf", "'x'", "''", "[1]", "{a: 1}", "'0x10'", "-1")
HUGE = ("1180591620717411303424", "1.0e+308", ".inf")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "a.yaml"
    path.write_text("name: a\ntarget: {path: t}\ndata: {sources: [{path: a.jsonl}]}\n")
    return path


def refuses(file: Path, setting: str, value: str) -> bool:
    with pytest.raises(ConfigError) as error:
        load_recipe(file, [f"{setting}={value}"])
    return f"  {setting}: " in str(error.value)


@pytest.mark.parametrize("value", [*NO_NUMBER, *HUGE, "true", "1.5"])
@pytest.mark.parametrize("setting", COUNTS)
def test_a_count_is_a_whole_number_within_reach(file: Path, setting: str, value: str) -> None:
    assert refuses(file, setting, value)


@pytest.mark.parametrize("value", [*NO_NUMBER, *HUGE])
@pytest.mark.parametrize("setting", [*FRACTIONS, *REALS])
def test_a_fraction_or_a_rate_is_a_finite_number(file: Path, setting: str, value: str) -> None:
    assert refuses(file, setting, value)


@pytest.mark.parametrize("value", ["1180591620717411303424", "'x'", "-1", ".nan", "[1]", "2PiB"])
def test_a_size_in_bytes_is_one_of_a_file(file: Path, value: str) -> None:
    assert refuses(file, "cache.shard_bytes", value)
