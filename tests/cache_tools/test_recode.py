"""A recoded cache is the one that precomputing would have made, as far as its source can tell, and says how far off."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from eaglepipe.cache.manifest import Plan, load_document
from eaglepipe.cache.opening import load_manifest
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.storage import find_cache
from eaglepipe.cache.writer import ShardWriter
from eaglepipe.cache_tools.recode import Changes, recode_cache
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.errors import CacheError, ConfigError, CorruptError, VocabError
from eaglepipe.files.hashing import hash_json
from eaglepipe.train import run_training
from tests.cache.damage import flip, read_everything
from tests.cache.derived import aux_of, digests, few, make_cache, rows_of, samples
from tests.stage_one import cache_in_an_earlier_order
from tests.tiny_project import TinyProject


def test_hidden_becomes_what_dense_would_have_been(full_cache: Path, dense_cache: Path, tmp_path: Path) -> None:
    result = recode_cache(tmp_path / "out", full_cache, Changes(supervision="dense"))
    assert verify_cache(tmp_path / "out", full=True).ok
    read_everything(tmp_path / "out")
    ours, theirs = rows_of(tmp_path / "out"), rows_of(dense_cache)
    assert ours.keys() == theirs.keys()
    for name, rows in ours.items():
        assert torch.allclose(rows, theirs[name], atol=2**-10 * float(theirs[name].max()))
    for name, sample in samples(dense_cache).items():
        found = samples(tmp_path / "out")[name]
        assert np.array_equal(found.aux_payload, sample.aux_payload)
        assert np.array_equal(found.position_mask, sample.position_mask)
    assert 0.0 <= result.errors["target_probs"]["kl_mean"] < 1e-4
    assert result.errors["aux_hidden_states"] == {"max": 0.0, "mean": 0.0, "relative_rms": 0.0}


def test_another_draft_vocabulary_is_the_one_that_precomputing_chooses(
    project: TinyProject, full_cache: Path, tmp_path: Path
) -> None:
    made = make_cache(project, tmp_path / "made", **few(project), **{"cache.full_head": "true", "vocab.draft_size": 90})
    result = recode_cache(tmp_path / "out", full_cache, Changes(draft_size=90))
    ours, theirs = Cache.open(tmp_path / "out"), Cache.open(made)
    assert torch.equal(ours.vocab.selected_token_ids, theirs.vocab.selected_token_ids)
    assert torch.equal(ours.vocab.selected_token_mask, theirs.vocab.selected_token_mask)
    mine, others = ours.start_tensors(), theirs.start_tensors()
    assert mine.keys() == others.keys() and all(torch.equal(mine[name], others[name]) for name in mine)
    assert digests(tmp_path / "out").keys() == digests(made).keys()
    for name, sample in samples(made).items():
        found = samples(tmp_path / "out")[name]
        assert np.array_equal(found.position_mask, sample.position_mask)
        assert found.supervision.keys() == sample.supervision.keys()
        assert all(np.array_equal(found.supervision[name], column) for name, column in sample.supervision.items())
        assert np.allclose(found.draft_mass, sample.draft_mass, atol=1e-6)
    before, after = Cache.open(full_cache), ours
    assert before.spec.draft_vocab_size == 160 and after.spec.draft_vocab_size == 90
    assert result.errors["draft_mass"]["mean_after"] < result.errors["draft_mass"]["mean_before"]


def test_another_caches_vocabulary_makes_two_caches_fit(project: TinyProject, full_cache: Path, tmp_path: Path) -> None:
    rows = json.dumps([{"path": str(project.sources[2]), "max_samples": 4}])
    other = make_cache(project, tmp_path, **{**few(project), "data.sources": rows, "vocab.draft_size": 120})
    recode_cache(tmp_path / "out", full_cache, Changes(vocab_from=other))
    result = run_training(
        project.recipe(
            **{
                "target.path": "gone", "train.output_dir": str(tmp_path / "run"), "train.max_steps": 1,
                "train.heldout_fraction": 0.0,
            }
        ),
        [other, tmp_path / "out"],
    )  # fmt: skip
    assert result.train_samples == Cache.open(other).num_samples + Cache.open(full_cache).num_samples


def test_report_is_what_an_outsider_measures(full_cache: Path, tmp_path: Path) -> None:
    result = recode_cache(tmp_path / "out", full_cache, Changes(aux_codec="fp16", supervision="dense"))
    old, new = aux_of(full_cache), aux_of(tmp_path / "out")
    differences = torch.cat([(new[name].double() - old[name].double()).flatten() for name in old]).abs()
    signal = torch.cat([old[name].double().flatten() for name in old])
    report = result.errors["aux_hidden_states"]
    assert report["max"] == float(differences.max()) > 0
    assert report["mean"] == pytest.approx(float(differences.mean()), rel=1e-9)
    assert report["relative_rms"] == pytest.approx(float(differences.norm() / signal.norm()), rel=1e-9)
    head = load_file(full_cache / "target.safetensors")["lm_head.weight"].double()
    kl = []
    for name, hidden in rows_of(full_cache).items():
        p = torch.softmax(hidden.double() @ head.T, dim=-1)
        q = rows_of(tmp_path / "out")[name].double().clamp(min=2.0**-25)
        kl.append((p * (p.log() - (q / q.sum(-1, keepdim=True)).log())).sum(-1))
    assert result.errors["target_probs"]["kl_mean"] == pytest.approx(float(torch.cat(kl).mean()), abs=1e-6)


def test_identity_follows_source_and_change_alone_and_no_recipe_finds_it(
    project: TinyProject, full_cache: Path, tmp_path: Path
) -> None:
    changes = Changes(supervision="dense", aux_codec="fp16")
    moved = Path(shutil.copytree(full_cache, tmp_path / "moved"))
    first = recode_cache(tmp_path / "caches" / "a", full_cache, changes).cache["identity"]
    second = recode_cache(tmp_path / "caches" / "b", moved, changes).cache["identity"]
    other = recode_cache(tmp_path / "caches" / "c", full_cache, Changes(supervision="dense")).cache["identity"]
    plan = load_document(tmp_path / "caches" / "a" / "plan.json", Plan)
    assert first == second == plan.identity == hash_json(plan.identity_fields)
    assert len({first, other, load_manifest(full_cache).identity}) == 3
    wanted = {"cache.supervision": "dense", "cache.aux_codec": "fp16", "cache.full_head": "true"}
    with pytest.raises(CacheError, match="no cache for recipe"):
        find_cache(project.recipe(**few(project), **wanted, **{"cache.root": str(tmp_path / "caches")}))


def test_a_stopped_recode_goes_on_and_reports_the_same(
    sealed_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, finish, written = Changes(aux_codec="fp16", supervision="dense"), ShardWriter.finish, []
    whole = recode_cache(tmp_path / "whole", sealed_cache, changes)

    def stop_after_one(self: ShardWriter) -> object:
        if written:
            raise KeyboardInterrupt
        written.append(finish(self))
        return written[0]

    monkeypatch.setattr(ShardWriter, "finish", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        recode_cache(tmp_path / "out", sealed_cache, changes)
    monkeypatch.setattr(ShardWriter, "finish", finish)
    with pytest.raises(CacheError, match="holds another cache"):
        recode_cache(tmp_path / "out", sealed_cache, Changes(supervision="dense"))
    resumed = recode_cache(tmp_path / "out", sealed_cache, changes)
    assert resumed.errors == whole.errors and resumed.cache["identity"] == whole.cache["identity"]
    for path in sorted((tmp_path / "whole" / "shards").iterdir()):
        assert (tmp_path / "out" / "shards" / path.name).read_bytes() == path.read_bytes()
    assert recode_cache(tmp_path / "out", sealed_cache, changes) == resumed


def test_a_stopped_recode_of_a_source_that_was_computed_in_another_order_begins_anew(
    project: TinyProject, sealed_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = cache_in_an_earlier_order(project, tmp_path / "caches", group_tokens=1500)
    assert Cache.open(other).identity == Cache.open(sealed_cache).identity
    changes, finish, written = Changes(aux_codec="fp16"), ShardWriter.finish, []

    def stop_after_two(self: ShardWriter) -> object:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(finish(self))
        return written[-1]

    monkeypatch.setattr(ShardWriter, "finish", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        recode_cache(tmp_path / "out", other, changes)
    monkeypatch.setattr(ShardWriter, "finish", finish)
    recode_cache(tmp_path / "out", sealed_cache, changes)
    assert Cache.open(tmp_path / "out").index.sample_ids == Cache.open(sealed_cache).index.sample_ids
    read_everything(tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (Changes(), ConfigError, "nothing to change"),
        (Changes(aux_codec="fp32", supervision="hidden", draft_size=160), ConfigError, "nothing to change"),
        (Changes(aux_codec="fp1"), ConfigError, "aux_codec 'fp1'"),
        (Changes(supervision="dense", codec="bf16"), ConfigError, "probs_codec 'bf16'"),
        (Changes(supervision="sparse", tolerance=1.5), ConfigError, "tolerance 1.5"),
        (Changes(supervision="sparse", max_entries=1), ConfigError, "max_entries 1"),
        (Changes(aux_codec="fp16", max_entries=9), ConfigError, "need supervision 'sparse'"),
        (Changes(supervision="telepathy"), CacheError, "cannot become 'telepathy'"),
        (Changes(draft_size=0), VocabError, "positive integer"),
        (Changes(draft_size=90, vocab_from=Path("x")), ConfigError, "not both"),
    ],
)
def test_a_change_that_cannot_be_is_told_before_anything_is_written(
    project: TinyProject, tmp_path: Path, changes: Changes, error: type[Exception], message: str, full_cache: Path
) -> None:
    source = Path(shutil.copytree(full_cache, tmp_path / "source"))
    stored = load_manifest(source).spec.aux_codec
    changes = changes if changes.aux_codec != "fp32" else Changes(aux_codec=stored, draft_size=160)
    with pytest.raises(error, match=message):
        recode_cache(tmp_path / "out", source, changes)
    assert not (tmp_path / "out").exists()


def test_what_the_source_does_not_hold_is_refused(sealed_cache: Path, dense_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"lm_head_full\.weight.*cache\.full_head=true"):
        recode_cache(tmp_path / "out", sealed_cache, Changes(draft_size=90))
    with pytest.raises(CacheError, match="only be computed from supervision 'hidden'"):
        recode_cache(tmp_path / "out", dense_cache, Changes(draft_size=90))
    with pytest.raises(CacheError, match="'dense' cannot become 'hidden'"):
        recode_cache(tmp_path / "out", dense_cache, Changes(supervision="hidden"))
    assert not (tmp_path / "out").exists()


def test_a_damaged_source_leaves_no_cache(sealed_cache: Path, tmp_path: Path) -> None:
    for name in (load_manifest(sealed_cache).shards[1].path, "target.safetensors"):
        source = Path(shutil.copytree(sealed_cache, tmp_path / Path(name).stem))
        flip(source / name, (source / name).stat().st_size // 2)
        out = tmp_path / f"out {Path(name).stem}"
        with pytest.raises(CorruptError, match=Path(name).name):
            recode_cache(out, source, Changes(supervision="dense"))
        assert not (out / "manifest.json").exists()
