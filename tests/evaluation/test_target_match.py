"""Evaluation with another target or another cache than the run was trained from."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from eaglepipe.cache.compare import target_weights
from eaglepipe.cache.manifest import Plan, document_bytes, load_document
from eaglepipe.errors import CacheError
from eaglepipe.evaluation.eval_report import EvalReport
from eaglepipe.evaluation.evaluate import evaluate_run
from eaglepipe.evaluation.finished_run import open_run
from eaglepipe.evaluation.options import EvalOptions
from eaglepipe.evaluation.target_match import TargetMatch, match_target
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.target.fingerprint import weights_fingerprint
from eaglepipe.train import run_training
from tests.tiny_project import VOCAB_SIZE, TinyProject


@pytest.fixture(scope="module")
def run(project: TinyProject, sealed_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_training(project.recipe(**{"train.output_dir": folder, "train.max_steps": 1}), [sealed_cache])
    return folder


@pytest.fixture
def sibling(project: TinyProject, tmp_path: Path) -> Path:
    """The same target except for one number of its last norm."""
    folder = Path(shutil.copytree(project.target, tmp_path / "sibling"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 0.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def evaluated(run: Path, cache: Path, target: Path | None) -> tuple[EvalReport, list[str]]:
    messages: list[str] = []
    options = EvalOptions(caches=(cache,), target=target, num_prompts=1, max_new_tokens=4, baselines=False)
    return evaluate_run(run, options, messages.append), messages


def test_sibling_is_decoded_with_and_a_warning_names_both_fingerprints(
    run: Path, sealed_cache: Path, sibling: Path
) -> None:
    report, messages = evaluated(run, sealed_cache, sibling)
    own = json.loads((sealed_cache / "plan.json").read_text())["identity_fields"]["target"]["weights"]
    (warning,) = [line for line in messages if "warning" in line]
    for fingerprint in (own, weights_fingerprint(sibling)):
        assert fingerprint[:12] in warning and fingerprint[:12] in report.table()
    assert [figure.conditions.kind for figure in report.measurements] == ["simulated", "real", "real"]
    assert json.loads((run / "eval.json").read_text())["target_matches"] is False


def test_same_weights_under_another_path_match_without_a_warning(
    run: Path, sealed_cache: Path, project: TinyProject, tmp_path: Path
) -> None:
    report, messages = evaluated(run, sealed_cache, Path(shutil.copytree(project.target, tmp_path / "moved")))
    assert report.to_json()["target_matches"] is True
    assert not any("warning" in line.lower() for line in [*messages, report.table()])


def test_no_target_gives_no_warning(run: Path, sealed_cache: Path) -> None:
    report, messages = evaluated(run, sealed_cache, None)
    assert report.to_json()["target_matches"] is None
    assert not any("warning" in line.lower() for line in [*messages, report.table()])


def test_weights_are_not_read_if_the_cache_does_not_record_its_target(
    run: Path, sealed_cache: Path, tmp_path: Path
) -> None:
    plan = load_document(sealed_cache / "plan.json", Plan)
    (tmp_path / "plan.json").write_bytes(document_bytes(plan.model_copy(update={"identity_fields": {}})))
    assert target_weights(tmp_path) is None
    unrecorded = replace(open_run(run, [sealed_cache]), target_weights=None)
    assert match_target(unrecorded, TargetConfig(path="nowhere/to be read")) == TargetMatch()


@pytest.mark.parametrize(
    ("token_ids", "changes", "reason"),
    [
        (range(VOCAB_SIZE - 40, VOCAB_SIZE), {}, "its draft ids stand for other tokens"),
        (range(5, 45), {"vocab.draft_size": 90}, "its draft ids stand for other tokens"),
        (range(5, 45), {"vocab.draft_size": VOCAB_SIZE}, "size mismatch for lm_head"),
    ],
)
def test_cache_with_another_draft_vocabulary_is_a_wrong_argument_not_damage(
    run: Path, project: TinyProject, tmp_path: Path, token_ids: range, changes: dict[str, object], reason: str
) -> None:
    other = tokenized_cache(project, tmp_path, token_ids=token_ids, **changes)
    with pytest.raises(CacheError, match=reason):
        open_run(run, [other])


def tokenized_cache(project: TinyProject, folder: Path, *, token_ids: range, **changes: object) -> Path:
    """Two samples that hold each of these tokens, from the same target."""
    rows = [{"id": str(n), "input_ids": list(token_ids), "loss_mask": [0] + [1] * (len(token_ids) - 1)} for n in (1, 2)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = f"[{{path: {folder / 'rows.jsonl'}, format: tokenized}}]"
    settings = {"data.sources": sources, "cache.root": str(folder / "caches"), **changes}
    return Path(run_precompute(project.recipe(**settings), report=lambda _: None).folder)
