"""P-EAGLE trained from a cache: the same rows as EAGLE-3, draws that no cut changes, exact continuation."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from eaglepipe.drafts.mask_token import unused_token, with_mask_token
from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from eaglepipe.errors import DraftError
from eaglepipe.recipe.family_settings import PeagleDraftConfig, PeagleTrainConfig
from eaglepipe.recipe.load import dump_recipe, load_recipe
from eaglepipe.recipe.tree import Recipe
from eaglepipe.train import run_training, train_from
from eaglepipe.training.data.batch import DataPosition, StepPlan
from eaglepipe.training.data.collate import pack_documents
from eaglepipe.training.data.loader import Loader
from eaglepipe.training.objectives.builders import build_draft
from eaglepipe.training.objectives.peagle import PeagleObjective
from eaglepipe.training.run.learner import Learner
from eaglepipe.training.run.metrics import read_metrics
from eaglepipe.training.run.ranks.distributed import World
from tests.tiny_project import TinyProject
from tests.training.tiny_source import VOCAB, TinySource, tiny_recipe, tiny_source

CPU = World(device=torch.device("cpu"))
DEPTHS = 4


def recipe(folder: Path, mask_token_id: int | None = VOCAB - 1, **train: Any) -> Recipe:
    settings = {"objective": "peagle", "ttt_steps": 7, "peagle_depths": DEPTHS, **train}
    return tiny_recipe(folder, **settings).model_copy(update={"draft": PeagleDraftConfig(mask_token_id=mask_token_id)})


def objective(**train: Any) -> PeagleObjective:
    return PeagleObjective(PeagleTrainConfig(**{"peagle_depths": DEPTHS, **train}))


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "step"]


@pytest.mark.parametrize("supervision", ["hidden", "dense", "sparse"])
def test_every_supervision_trains_a_draft_that_reloads_with_its_placeholder(supervision: str, tmp_path: Path) -> None:
    result = train_from(recipe(tmp_path, epochs=3), tiny_source(supervision=supervision))
    assert result.heldout_loss_end < result.heldout_loss_start
    assert len(result.accuracy_by_depth) == DEPTHS
    saved = load_file(tmp_path / "draft" / "model.safetensors")
    loaded = LlamaEagle3DraftModel.from_pretrained(tmp_path / "draft")
    assert loaded.state_dict().keys() == saved.keys() and "mask_hidden" in saved
    assert (loaded.config.parallel_drafting, loaded.config.mask_token_id) == (True, VOCAB - 1)
    assert torch.equal(loaded.mask_hidden, saved["mask_hidden"])


def test_placeholder_learns(tmp_path: Path) -> None:
    source, settings = tiny_source(), recipe(tmp_path, max_steps=2)
    before = build_draft(source, settings.train, settings.draft).mask_hidden.detach().clone()
    train_from(settings, source)
    assert not torch.equal(load_file(tmp_path / "draft" / "model.safetensors")["mask_hidden"], before)


@pytest.mark.parametrize("cut", [{"micro_batch_tokens": 16}, {"micro_batch_tokens": 48}, {"sequence_partitions": 3}])
def test_a_step_does_not_depend_on_how_it_is_cut(cut: dict[str, int], tmp_path: Path) -> None:
    train_from(recipe(tmp_path / "a", max_steps=3), tiny_source())
    train_from(recipe(tmp_path / "b", max_steps=3, **cut), tiny_source())
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), rel=1e-4)


def test_a_run_continues_exactly(tmp_path: Path) -> None:
    settings = {"eval_every_steps": 100, "min_learning_rate_ratio": 1.0, "warmup_ratio": 0.0}
    train_from(recipe(tmp_path / "straight", **settings), tiny_source())
    for limit in ({"max_steps": 3}, {"max_steps": 4}, {}):
        train_from(recipe(tmp_path / "parts", **settings, **limit), tiny_source())
    assert losses(tmp_path / "parts") == losses(tmp_path / "straight")
    weights = [load_file(tmp_path / run / "draft" / "model.safetensors") for run in ("parts", "straight")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_draws_follow_seed_epoch_and_sample_and_no_arrangement() -> None:
    source = tiny_source()
    documents = [source.read(i) for i in range(6)]
    together = pack_documents((tuple(documents),))
    apart = pack_documents(tuple((document,) for document in documents))
    seeds = [objective().draw(packed, 1, training=True).extras["cod_seeds"].flatten() for packed in (together, apart)]
    assert torch.equal(*seeds) and len(seeds[0].unique()) == 6
    counts = [objective().draw(packed, 1, training=True).counts for packed in (together, apart)]
    assert torch.equal(*counts)
    assert not torch.equal(objective().draw(together, 2, training=True).extras["cod_seeds"].flatten(), seeds[0])
    assert not torch.equal(objective(seed=9).draw(together, 1, training=True).extras["cod_seeds"].flatten(), seeds[0])
    assert objective().draw(pack_documents(()), 0, training=True).counts.tolist() == [0] * DEPTHS


@pytest.mark.parametrize("training", [True, False])
def test_module_counts_what_was_drawn(training: bool, tmp_path: Path) -> None:
    source, settings = tiny_source(), recipe(tmp_path)
    peagle = PeagleObjective(settings.train)
    learner = Learner(source, build_draft(source, settings.train, settings.draft), settings.train, CPU)
    plan = StepPlan(samples=torch.arange(5).numpy(), micro_batches=(((0, 1), (2,)), ((3,), (4,))), after=DataPosition())
    loader = Loader(
        source,
        [plan],
        draw=partial(peagle.draw, training=training),
        columns=peagle.columns,
        device=CPU.device,
        prefetch_batches=4,
    )
    with loader, torch.no_grad():
        ((header, batches),) = ((header, list(batches)) for header, batches in loader)
        if training:
            counters = learner.step(batches, header.counts, 0.0).counters
            assert counters.counts.tolist() == header.counts.tolist()
        else:
            assert sum(learner.measure(batch).counts for batch in batches).tolist() == header.counts.tolist()


def test_slots_outside_the_draft_vocabulary_are_learned_from_too() -> None:
    documents = [tiny_source().read(i) for i in range(12)]
    packed = pack_documents(tuple((document,) for document in documents))
    assert packed.batch.loss_mask.sum() > packed.batch.position_mask.sum()
    assert objective().draw(packed, 0, training=False).counts[0] == packed.batch.loss_mask.sum()


def test_without_mask_token_nothing_is_started(tmp_path: Path) -> None:
    with pytest.raises(DraftError, match=r"P-EAGLE without mask token.*draft\.mask_token_id"):
        train_from(recipe(tmp_path / "run", mask_token_id=None), tiny_source())
    assert not (tmp_path / "run").exists()


def test_two_steps_from_a_real_cache_leave_a_checkpoint_that_goes_on(
    project: TinyProject, sealed_cache: Path, tmp_path: Path
) -> None:
    overrides = {
        "target.path": "gone",
        "train.output_dir": tmp_path / "run",
        "train.objective": "peagle",
        "train.ttt_steps": 7,
        "train.peagle_depths": DEPTHS,
        "draft.num_hidden_layers": 2,
        "train.sequence_partitions": 2,
        "train.gradient_checkpointing": True,
    }
    for steps in (2, 3):
        result = run_training(project.recipe(**overrides, **{"train.max_steps": steps}), [sealed_cache])
        assert result.steps == steps
    assert len(losses(tmp_path / "run")) == 3
    pad = LlamaEagle3DraftModel.from_pretrained(tmp_path / "run" / "draft").config
    assert pad.mask_token_id == pad.pad_token_id is not None


def test_an_uncovered_top1_is_learned_from_and_never_a_hit(tmp_path: Path) -> None:
    source, settings = tiny_source(), recipe(tmp_path)
    train_from(settings, source)
    bare = tuple(replace(sample, position_mask=sample.position_mask & False) for sample in source.samples)
    rows = {}
    for name, one in {"covered": source, "uncovered": replace(source, samples=bare)}.items():
        learner = Learner(one, LlamaEagle3DraftModel.from_pretrained(tmp_path / "draft"), settings.train, CPU)
        plan = StepPlan(samples=torch.arange(4).numpy(), micro_batches=(((0, 1, 2, 3),),), after=DataPosition())
        draw, columns = partial(learner.objective.draw, training=False), learner.objective.columns
        with Loader(one, [plan], draw=draw, columns=columns, device=CPU.device, prefetch_batches=2) as loader:
            for _, batches in loader:
                (rows[name],) = (learner.measure(batch) for batch in batches)
    assert rows["covered"].hits[0] > 0 and rows["uncovered"].hits.sum() == rows["uncovered"].correct.sum() == 0
    assert torch.equal(rows["covered"].loss_sums, rows["uncovered"].loss_sums)
    assert torch.equal(rows["covered"].valid, rows["uncovered"].valid)


def source_with(tokens: dict[int, int], **config: Any) -> Any:
    """A source in which some ids are written as others, and whose target's config has more fields."""
    source = tiny_source()
    samples = [
        replace(sample, input_ids=np.array([tokens.get(int(i), int(i)) for i in sample.input_ids], np.int32))
        for sample in source.samples
    ]

    @dataclass(frozen=True, kw_only=True)
    class Source(TinySource):
        @property
        def target_config(self) -> dict[str, Any]:
            return {**super().target_config, **config}

    return Source(**{**vars(source), "samples": tuple(samples)})


def test_default_mask_token_is_one_that_the_corpus_does_not_hold() -> None:
    spare = {7: 8, 30: 31, 35: 31, 38: 31}
    assert unused_token(source_with(spare, pad_token_id=7)) == 7
    assert unused_token(source_with(spare, pad_token_id=8)) == 38
    assert unused_token(source_with(spare, pad_token_id=8, eos_token_id=[38, 35], bos_token_id=1)) == 30
    assert unused_token(source_with(spare, pad_token_id=VOCAB)) == 38
    assert unused_token(source_with({}, pad_token_id=8)) == 8
    counted = source_with(spare, pad_token_id=7)
    counted.vocab.counts[[7, 38]] = 3  # in samples that are not read
    assert unused_token(counted) == 35


def test_mask_token_of_a_run_stays_when_it_goes_on(tmp_path: Path) -> None:
    spare = source_with({7: 8, 30: 31}, pad_token_id=8)
    for steps in (2, 3):
        train_from(recipe(tmp_path, mask_token_id=None, max_steps=steps, checkpoint_every_steps=1), spare)
        assert LlamaEagle3DraftModel.from_pretrained(tmp_path / "draft").config.mask_token_id == 30
    assert load_recipe(tmp_path / "recipe.yaml").draft.mask_token_id == 30
    earlier = recipe(tmp_path / "earlier", mask_token_id=None, max_steps=2, checkpoint_every_steps=1)
    folder = tmp_path / "earlier"
    (folder / "checkpoints" / "step-0000001").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dump_recipe(earlier))
    assert with_mask_token(earlier, spare, folder) == earlier  # it began with the pad token, as the target's config has
