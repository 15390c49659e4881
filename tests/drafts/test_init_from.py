"""Initialising from a published draft: any layout gives the same weights, and misfits are named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from eaglepipe.cache.reader import Cache
from eaglepipe.cache.storage import find_cache
from eaglepipe.cache_tools.recode import Changes, recode_cache
from eaglepipe.drafts.init_from import init_from
from eaglepipe.errors import ConfigError, CorruptError, DraftError
from eaglepipe.export.write import export_draft
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.family_settings import Eagle3DraftConfig
from eaglepipe.recipe.tree import Recipe
from eaglepipe.train import preview_training, run_training
from eaglepipe.training.objectives.builders import build_eagle3_draft
from tests.export.made_drafts import DEPTH, MadeTarget, make_draft, save_draft
from tests.tiny_project import TinyProject

AUX = "eagle_aux_hidden_state_layer_ids"
ENGINES = ("vllm", "sglang", "speculators", "hf")


def fresh(target: MadeTarget, **settings: Any) -> PreTrainedModel:
    return build_eagle3_draft(target, Eagle3DraftConfig(**settings), seed=1)  # type: ignore[arg-type]


def assert_same_weights(one: PreTrainedModel, other: PreTrainedModel) -> None:
    expected = one.state_dict()
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def edited(
    folder: Path, into: Path, *, drop: str = "", tensors: dict[str, torch.Tensor] | None = None, **config: Any
) -> Path:
    stored = {**load_file(folder / "model.safetensors"), **(tensors or {})}
    stored.pop(drop, None)
    into.mkdir()
    save_file(stored, into / "model.safetensors")
    (into / "config.json").write_text(json.dumps({**json.loads((folder / "config.json").read_text()), **config}))
    return into


@pytest.mark.parametrize("engine", ENGINES)
def test_every_layout_gives_back_the_draft_that_was_exported(engine: str, tmp_path: Path) -> None:
    target, settings = (
        MadeTarget(aux_layer_ids=(1, 4, 8)),
        {"num_hidden_layers": 2, "fc_norm": True, "norm_output": True},
    )
    draft = make_draft(target, **settings)
    folder = export_draft(save_draft(draft, tmp_path / "draft"), engine, dtype="float32").folder  # type: ignore[arg-type]
    initialised = fresh(target, **settings)
    notes = init_from(initialised, folder)
    assert_same_weights(initialised, draft)
    assert ("embed_tokens.weight as newly built" in notes[0]) == (engine == "sglang")


def test_pickled_head_without_embeddings_or_rope_is_taken_over(tmp_path: Path) -> None:
    """As the first EAGLE-3 heads were published: a pickle, no embeddings, no rope_theta, no norm flags."""
    draft = make_draft(MadeTarget())
    exported = export_draft(save_draft(draft, tmp_path / "draft"), "sglang", dtype="float32").folder
    config = json.loads((exported / "config.json").read_text())
    for name in (
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "norm_before_residual",
        "fc_norm",
        "head_dim",
    ):
        del config[name]
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "config.json").write_text(json.dumps(config))
    torch.save(load_file(exported / "model.safetensors"), tmp_path / "published" / "pytorch_model.bin")
    initialised = fresh(MadeTarget())
    notes = init_from(initialised, tmp_path / "published")
    assert_same_weights(initialised, draft)
    assert "embed_tokens.weight as newly built" in notes[0] and "rope theta 10000" in notes[1]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return export_draft(save_draft(make_draft(MadeTarget()), tmp_path / "draft"), "hf", dtype="float32").folder


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        (MadeTarget(draft_size=39), {}, "40 tokens, the cache's 39.*--vocab-from"),
        (MadeTarget(), {"intermediate_size": 32}, r"draft\.intermediate_size=24"),
        (MadeTarget(), {"num_hidden_layers": 2, "fc_norm": True}, r"draft\.num_hidden_layers=1 draft\.fc_norm=false"),
        (MadeTarget(aux_layer_ids=(1, 4, 6)), {}, r"the default layers, this draft boundaries \[1, 4, 6\]"),
        (MadeTarget(aux_layer_ids=(1, 4, 6, 8)), {}, "num_aux is 3, this draft's is 4"),
    ],
)
def test_draft_that_does_not_fit_the_cache_or_recipe_is_named(
    target: MadeTarget, settings: dict[str, Any], message: str, published: Path
) -> None:
    with pytest.raises(DraftError, match=message):
        init_from(fresh(target, **settings), published)


def test_faults_of_the_published_folder_are_named(published: Path, tmp_path: Path) -> None:
    def refused(name: str, message: str, **change: Any) -> None:
        with pytest.raises(DraftError, match=message):
            init_from(fresh(MadeTarget()), edited(published, tmp_path / name, **change))

    shifted = load_file(published / "model.safetensors")["d2t"].clone()
    shifted[-1] -= 1
    refused("norm", "missing norm", drop="norm.weight")
    refused("extra", "unknown verifier_norm", tensors={"verifier_norm.weight": torch.ones(16)})
    refused("fc", r"fc\.weight is \(48, 16\)", tensors={"fc.weight": torch.ones(48, 16)})
    refused("map", "no d2t", drop="d2t")
    refused("layers", r"\[3, 5, 8\]", **{AUX: [3, 5, 8]})
    refused("residual", "norm_before_residual", norm_before_residual=True)
    with pytest.raises(CorruptError, match="NaN"):
        init_from(
            fresh(MadeTarget()),
            edited(published, tmp_path / "nan", tensors={"norm.weight": torch.full((16,), float("nan"))}),
        )


def test_ids_without_a_second_spelling_fit_in_either_reading(published: Path, tmp_path: Path) -> None:
    boundaries = [2, DEPTH // 2, DEPTH - 3]
    for name, ids in (("outputs", [boundary - 1 for boundary in boundaries]), ("boundaries", boundaries)):
        init_from(fresh(MadeTarget()), edited(published, tmp_path / name, eagle_config={AUX: ids}))


@pytest.fixture(scope="module")
def recipe(project: TinyProject, sealed_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("runs") / "first"
    return project.recipe(**{
        "cache.root": sealed_cache.parent, "train.output_dir": folder,
        "train.max_steps": 4, "train.eval_every_steps": 2,
    })  # fmt: skip


@pytest.fixture(scope="module")
def first_export(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_training(recipe, [find_cache(recipe)])
    out = tmp_path_factory.mktemp("published") / "draft"
    return export_draft(Path(recipe.train.output_dir or ""), "sglang", dtype="float32", out=out).folder


def test_run_goes_on_where_the_published_draft_stood(recipe: Recipe, first_export: Path, tmp_path: Path) -> None:
    train = recipe.train.model_copy(update={"output_dir": str(tmp_path / "second"), "max_steps": 2})
    draft = recipe.draft.model_copy(update={"init": str(first_export)})
    second = recipe.model_copy(update={"train": train, "draft": draft})
    caches = [find_cache(recipe)]
    first = json.loads((Path(recipe.train.output_dir or "") / "train.json").read_text())
    assert any("initialised from its 13 tensors" in note for note in preview_training(second, caches).notes)
    result = run_training(second, caches)
    assert result.heldout_loss_start == pytest.approx(first["heldout_loss_end"], abs=1e-5)

    moved = first_export.rename(tmp_path / "elsewhere")
    longer = train.model_copy(update={"max_steps": 3})
    resumed = second.model_copy(update={"train": longer, "draft": draft.model_copy(update={"init": str(moved)})})
    assert run_training(resumed, caches).steps == 3
    other = edited(moved, tmp_path / "other", tensors={"norm.weight": torch.ones(32)})
    changed = resumed.model_copy(update={"draft": draft.model_copy(update={"init": str(other)})})
    with pytest.raises(ConfigError, match="init"):
        run_training(changed, caches)


def test_cache_takes_over_the_vocabulary_of_a_published_draft(project: TinyProject, tmp_path: Path) -> None:
    with_all_rows = project.recipe(**{"cache.root": tmp_path / "caches", "cache.full_head": "true"})
    folder = Path(run_precompute(with_all_rows, report=lambda _: None).folder)
    target = MadeTarget(target_config={**Cache.open(folder).target_config, "num_hidden_layers": DEPTH})
    wrong = save_draft(make_draft(MadeTarget()), tmp_path / "wrong")
    with pytest.raises(DraftError, match="64 tokens"):
        recode_cache(tmp_path / "refused", folder, Changes(vocab_from=wrong))
    published = export_draft(save_draft(make_draft(target), tmp_path / "right"), "hf").folder
    recode_cache(tmp_path / "made", folder, Changes(vocab_from=published))
    assert Cache.open(tmp_path / "made").vocab.selected_token_ids.tolist() == target.selected_token_ids.tolist()
