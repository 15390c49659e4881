"""DFlash trained from a cache: any supervision, draws that no cut changes, exact continuation, ranks, refusals."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from eaglepipe.drafts.mask_token import unused_token
from eaglepipe.eagle.dflash.draft import DFlashDraftModel
from eaglepipe.errors import ConfigError, DraftError
from eaglepipe.recipe.block_settings import DflashRecipe, DflashTrainConfig
from eaglepipe.recipe.load import dump_recipe, load_recipe, parse_recipe
from eaglepipe.train import run_training, train_from
from eaglepipe.training.data.batch import DataPosition, StepPlan
from eaglepipe.training.data.collate import pack_documents
from eaglepipe.training.data.loader import Loader
from eaglepipe.training.objectives.builders import build_draft
from eaglepipe.training.objectives.dflash import DflashObjective
from eaglepipe.training.run.learner import Learner
from eaglepipe.training.run.metrics import read_metrics
from eaglepipe.training.run.ranks.distributed import World
from tests.ranks import run_ranks
from tests.tiny_project import TinyProject
from tests.training.tiny_source import VOCAB, TinySource, tiny_recipe, tiny_source

CPU = World(device=torch.device("cpu"))
BLOCK = 4
MASK = VOCAB - 1


def spare_source(**settings: Any) -> TinySource:
    """The tiny source without the token MASK in its texts."""
    source = tiny_source(**settings)
    ids = [np.where(sample.input_ids == MASK, 0, sample.input_ids).astype(np.int32) for sample in source.samples]
    return replace(source, samples=tuple(map(lambda s, i: replace(s, input_ids=i), source.samples, ids)))


def recipe(folder: Path, draft: dict[str, Any] | None = None, **train: Any) -> DflashRecipe:
    values = tiny_recipe(folder).model_dump(mode="json")
    own = DflashTrainConfig.model_fields.keys()
    kept = {name: value for name, value in values["train"].items() if name in own - {"loss", "objective"}}
    values["train"] = {**kept, "objective": "dflash", "block_size": BLOCK, **train}
    values["draft"] = {"num_hidden_layers": 1, **(draft or {})}
    parsed = parse_recipe(values)
    assert isinstance(parsed, DflashRecipe)
    return parsed


def objective(**train: Any) -> DflashObjective:
    return DflashObjective(DflashTrainConfig(**{"block_size": BLOCK, **train}))


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "step"]


@pytest.mark.parametrize(
    ("supervision", "train"),
    [
        ("hidden", {}),
        ("sparse", {"loss": {"ce": 0.1, "tv": 0.9}, "gradient_checkpointing": True}),
        ("dense", {"loss": "kl", "position_weights": "dpace", "labels": "top1"}),
        ("hidden", {"dtype": "bfloat16", "loss": "tv", "sequence_partitions": 2}),
    ],
)
def test_every_supervision_trains_a_draft_that_reloads(supervision: str, train: dict, tmp_path: Path) -> None:
    result = train_from(recipe(tmp_path, epochs=3, **train), spare_source(supervision=supervision))
    assert result.heldout_loss_end < result.heldout_loss_start
    assert len(result.accuracy_by_depth) == BLOCK - 1
    saved = load_file(tmp_path / "draft" / "model.safetensors")
    loaded = DFlashDraftModel.from_pretrained(tmp_path / "draft")
    assert loaded.state_dict().keys() == saved.keys()
    assert (loaded.config.block_size, loaded.config.mask_token_id) == (BLOCK, MASK)
    assert loaded.config.eagle_aux_hidden_state_layer_ids == [2, 4, 5]
    assert load_recipe(tmp_path / "recipe.yaml").draft.mask_token_id == MASK


def test_embeddings_and_head_stay_the_targets(tmp_path: Path) -> None:
    source = spare_source()
    train_from(recipe(tmp_path, max_steps=2), source)
    saved = load_file(tmp_path / "draft" / "model.safetensors")
    for name in ("embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(saved[name], source.tensors[name])


@pytest.mark.parametrize("cut", [{"micro_batch_tokens": 16}, {"micro_batch_tokens": 48}, {"sequence_partitions": 3}])
def test_a_step_does_not_depend_on_how_it_is_cut(cut: dict[str, int], tmp_path: Path) -> None:
    settings = {"max_steps": 3, "position_weights": "dpace", "max_anchors": 3}
    train_from(recipe(tmp_path / "a", **settings), spare_source())
    train_from(recipe(tmp_path / "b", **settings, **cut), spare_source())
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), rel=1e-4)


def test_a_run_continues_exactly(tmp_path: Path) -> None:
    settings = {"eval_every_steps": 100, "min_learning_rate_ratio": 1.0, "warmup_ratio": 0.0, "max_anchors": 3}
    train_from(recipe(tmp_path / "straight", **settings), spare_source())
    for limit in ({"max_steps": 3}, {"max_steps": 4}, {}):
        train_from(recipe(tmp_path / "parts", **settings, **limit), spare_source())
    assert losses(tmp_path / "parts") == losses(tmp_path / "straight")
    weights = [load_file(tmp_path / run / "draft" / "model.safetensors") for run in ("parts", "straight")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def _train_here(folder: Path) -> None:
    train_from(recipe(folder, max_steps=4, max_anchors=3), spare_source())


def test_two_ranks_follow_the_trajectory_of_one(tmp_path: Path) -> None:
    run_ranks(2, _train_here, tmp_path / "two")
    _train_here(tmp_path / "one")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_module_counts_what_was_drawn(training: bool, tmp_path: Path) -> None:
    source, settings = spare_source(), recipe(tmp_path, {"mask_token_id": MASK}, max_anchors=3)
    dflash = DflashObjective(settings.train)
    learner = Learner(source, build_draft(source, settings.train, settings.draft), settings.train, CPU)
    plan = StepPlan(samples=np.arange(5), micro_batches=(((0, 1), (2,)), ((3,), (4,))), after=DataPosition())
    draw = partial(dflash.draw, training=training)
    loader = Loader(source, [plan], draw=draw, columns=dflash.columns, device=CPU.device, prefetch_batches=4)
    with loader, torch.no_grad():
        ((header, batches),) = ((header, list(batches)) for header, batches in loader)
        if training:
            counters = learner.step(batches, header.counts, 0.0).counters
            assert counters.counts.tolist() == header.counts.tolist()
        else:
            assert sum(learner.measure(batch).counts for batch in batches).tolist() == header.counts.tolist()


def test_draws_follow_seed_epoch_and_sample_and_no_arrangement() -> None:
    source = spare_source()
    documents = [source.read(i) for i in range(6)]
    together = pack_documents((tuple(documents),))
    apart = pack_documents(tuple((document,) for document in documents))
    drawn = [objective().draw(packed, 1, training=True) for packed in (together, apart)]
    seeds = [one.extras["anchor_seeds"].flatten() for one in drawn]
    assert torch.equal(*seeds) and len(seeds[0].unique()) == 6
    assert torch.equal(*(one.counts for one in drawn))
    assert not torch.equal(objective().draw(together, 2, training=True).extras["anchor_seeds"].flatten(), seeds[0])
    assert objective().draw(pack_documents(()), 0, training=True).counts.tolist() == [0] * (BLOCK - 1)


def test_only_losses_on_distributions_read_supervision() -> None:
    assert objective().columns.supervision == "none"
    for settings in ({"loss": "kl"}, {"loss": {"ce": 0.1, "tv": 0.9}}, {"labels": "top1"}):
        assert objective(**settings).columns.supervision == "supervised"


def test_gamma_follows_the_block_unless_it_is_set() -> None:
    by_size = {size: DflashTrainConfig(block_size=size).gamma for size in (4, 7, 8, 10, 16)}
    assert by_size == {4: 4.0, 7: 4.0, 8: 4.0, 10: 5.0, 16: 7.0}
    assert DflashTrainConfig(decay_gamma=2.5).gamma == 2.5


@pytest.mark.parametrize(
    ("train", "draft", "message"),
    [
        ({"block_size": 1}, {}, r"train\.block_size(?s:.)*greater than or equal to 2"),
        ({"loss": "mse"}, {}, r"train\.loss"),
        ({"loss": ["ce"]}, {}, "must be ce, kl or tv, or the weight of each"),
        ({"loss": {"ce": 0.0}}, {}, r"train\.loss(?s:.)*ce, kl or tv"),
        ({"position_weights": "dpace", "decay_gamma": 4.0}, {}, "decay_gamma serves position_weights exponential"),
        ({"dpace_alpha": 0.3}, {}, "dpace_alpha serves position_weights dpace"),
        ({}, {"freeze_embeddings": False}, "shares the target's embeddings and head"),
        ({}, {"full_attention_layers": [0]}, "set sliding_window too"),
        ({}, {"sliding_window_non_causal": True}, "set sliding_window too"),
    ],
)
def test_settings_that_make_no_block_draft_are_refused(train: dict, draft: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe(tmp_path, draft, **train)


@pytest.mark.parametrize(
    ("draft", "error", "message"),
    [
        ({"mask_token_id": 5}, DraftError, r"mask token 5 is a token of this corpus.*draft\.mask_token_id"),
        ({"mask_token_id": VOCAB}, DraftError, f"mask token {VOCAB} is outside the target's vocabulary"),
        ({"hidden_size": 32}, ConfigError, r"hidden_size is 32, the target's 16.*remove draft\.hidden_size"),
        (
            {"aux_layer_ids": [2, 3]},
            ConfigError,
            r"draft\.aux_layer_ids \[2, 3\]: the cache has .*not \[3\].*cache\.aux_layer_ids=\[2,3,4,5\]",
        ),
    ],
)
def test_drafts_that_do_not_fit_the_cache_are_refused_before_anything_is_written(
    draft: dict, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        train_from(recipe(tmp_path / "run", draft), spare_source())
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_corpus_that_uses_every_token_has_no_mask_token(tmp_path: Path) -> None:
    with pytest.raises(DraftError, match=r"DFlash without mask token.*draft\.mask_token_id"):
        train_from(recipe(tmp_path / "run"), tiny_source())
    assert unused_token(spare_source()) == MASK


def test_two_steps_from_a_real_cache_leave_a_checkpoint_that_goes_on(
    project: TinyProject, sealed_cache: Path, tmp_path: Path
) -> None:
    overrides = {
        "target.path": "gone",
        "train.output_dir": tmp_path / "run",
        "train.objective": "dflash",
        "train.ttt_steps": 7,
        "train.block_size": BLOCK,
        "draft.num_hidden_layers": 2,
        "train.loss": "{ce: 0.1, tv: 0.9}",
        "train.gradient_checkpointing": True,
    }
    for steps in (2, 3):
        result = run_training(project.recipe(**overrides, **{"train.max_steps": steps}), [sealed_cache])
        assert result.steps == steps
    assert len(losses(tmp_path / "run")) == 3
    assert "block_size: 4" in dump_recipe(load_recipe(tmp_path / "run" / "recipe.yaml"))
