"""Stage 1 on real input: what it stores, what it leaves out, and what it refuses before it begins."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from eaglepipe.cache.codecs.catalog import EncodedRows
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.supervision.columns import take_rows
from eaglepipe.errors import CacheError, ConfigError, DataError, EaglepipeError, ResourceError, TargetError, VocabError
from eaglepipe.estimate.prices import estimate_recipe
from eaglepipe.precompute.claims import Worker, parse_worker
from eaglepipe.precompute.preview import preview_recipe
from eaglepipe.precompute.stage import run_precompute
from tests.cache.derived import few
from tests.stage_one import cache_of, quiet, shard_bytes
from tests.tiny_project import TinyProject

EXACT = {"cache.aux_codec": "fp32", "cache.hidden_codec": "fp32", "cache.probs_codec": "fp32"}


def decoded(cache: Cache, sample: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Aux states [T, A, Ht] and supervision rows [S, width] as stored."""
    stored = cache.read(sample)
    return (
        cache.spec.aux.decode(EncodedRows(payload=torch.from_numpy(stored.aux_payload.copy()))),
        cache.spec.kind.decode_rows(take_rows(stored.supervision, np.arange(stored.supervised.sum()))),
    )


def test_samples_in_pieces_store_the_numbers_of_one_forward(project: TinyProject, tmp_path: Path) -> None:
    of_few = EXACT | few(project)
    whole = cache_of(project, tmp_path / "whole", **of_few)
    pieces = cache_of(project, tmp_path / "pieces", **of_few, **{"precompute.chunk_tokens": 33})
    assert int(whole.index.num_tokens.max()) > 2 * 33 and pieces.identity == whole.identity
    for number in range(whole.num_samples):
        one, other = whole.read(number), pieces.read(number)
        for name in ("input_ids", "supervised", "position_mask", "target_top1"):
            assert np.array_equal(getattr(one, name), getattr(other, name))
        for expected, found in zip(decoded(whole, number), decoded(pieces, number), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_sample_of_more_probabilities_than_a_list_holds_is_refused_before_the_target_is_loaded(
    project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eaglepipe.precompute.layout.MOST_ITEMS", 999)
    recipe = project.recipe(**{"cache.root": tmp_path, "cache.supervision": "dense"})
    with pytest.raises(DataError, match=r"supervised tokens of up to \d+ probabilities .* cache.supervision to hidden"):
        run_precompute(recipe, report=quiet, dry_run=True)


@pytest.mark.parametrize("supervision", ["dense", "hidden"])
def test_every_stored_number_equals_the_targets_own(project: TinyProject, tmp_path: Path, supervision: str) -> None:
    cache = cache_of(project, tmp_path, **EXACT, **{"cache.supervision": supervision})
    model = AutoModelForCausalLM.from_pretrained(project.target)
    ids = cache.vocab.selected_token_ids
    for sample in range(0, cache.num_samples, 5):
        stored = cache.read(sample)
        with torch.no_grad():
            output = model(torch.from_numpy(stored.input_ids.copy())[None].long(), output_hidden_states=True)
        aux, rows = decoded(cache, sample)
        states = torch.stack([output.hidden_states[b][0] for b in cache.spec.aux_layer_ids], 1)
        torch.testing.assert_close(aux, states, rtol=1e-5, atol=1e-5)
        logits, supervised = output.logits[0].double(), torch.from_numpy(stored.supervised)
        full = logits.softmax(-1)
        inside = full[:, ids]
        if supervision == "dense":
            torch.testing.assert_close(
                rows.double(), (inside / inside.sum(-1, keepdim=True))[supervised], rtol=1e-4, atol=1e-6
            )
        else:
            torch.testing.assert_close(rows, output.hidden_states[-1][0][supervised], rtol=1e-5, atol=1e-5)
        top1 = logits.argmax(-1)
        assert torch.equal(torch.from_numpy(stored.target_top1.copy())[supervised].long(), top1[supervised])
        assert (stored.target_top1[~stored.supervised] == -1).all()
        torch.testing.assert_close(
            torch.from_numpy(stored.draft_mass.copy())[supervised].double(),
            inside.sum(-1)[supervised],
            rtol=1e-5,
            atol=1e-6,
        )
        expected = supervised & torch.isin(top1, ids)
        assert torch.equal(torch.from_numpy(stored.position_mask.copy()), expected)


def test_start_tensors_are_the_targets_embeddings_and_head_rows(sealed_cache: Path, project: TinyProject) -> None:
    cache = Cache.open(sealed_cache)
    weights = load_file(project.target / "model.safetensors")
    start = cache.start_tensors()
    assert torch.equal(start["embed_tokens.weight"], weights["model.embed_tokens.weight"])
    assert torch.equal(start["norm.weight"], weights["model.norm.weight"])
    assert torch.equal(start["lm_head.weight"], weights["lm_head.weight"][cache.vocab.selected_token_ids])
    assert "lm_head_full.weight" not in start


def test_other_batch_sizes_give_the_same_rows(project: TinyProject, tmp_path: Path) -> None:
    caches = [
        cache_of(project, tmp_path / str(tokens), **(EXACT | few(project) | {"precompute.batch_tokens": tokens}))
        for tokens in (1, 700, 20000)
    ]
    by_id = [{cache.index.sample_ids[i]: decoded(cache, i) for i in range(cache.num_samples)} for cache in caches]
    assert caches[0].identity == caches[2].identity
    for sample_id, (aux, rows) in by_id[0].items():
        for other in by_id[1:]:
            torch.testing.assert_close(other[sample_id][0], aux, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(other[sample_id][1], rows, rtol=1e-5, atol=1e-5)


def test_two_runs_give_the_same_bytes(project: TinyProject, tmp_path: Path, sealed_cache: Path) -> None:
    again = cache_of(project, tmp_path)
    assert shard_bytes(again.folder) == shard_bytes(sealed_cache)
    assert (again.folder / "manifest.json").read_bytes() == (sealed_cache / "manifest.json").read_bytes()


def test_workers_together_make_the_same_cache_and_the_last_one_seals(
    project: TinyProject, tmp_path: Path, sealed_cache: Path
) -> None:
    recipe = project.recipe(**{"cache.root": tmp_path})
    first = run_precompute(recipe, worker=Worker(rank=1, count=2), report=quiet)
    assert not first.complete and 0 < first.shards_written < first.shards
    with pytest.raises(CacheError, match="incomplete"):
        Cache.open(Path(first.folder))
    with pytest.raises(CacheError, match="cannot be sealed"):
        run_precompute(recipe, seal_only=True, report=quiet)
    second = run_precompute(recipe, worker=Worker(rank=0, count=2), report=quiet)
    assert second.complete
    assert shard_bytes(Path(second.folder)) == shard_bytes(sealed_cache)


def test_complete_cache_is_returned_without_loading_the_target(project: TinyProject, sealed_cache: Path) -> None:
    recipe = project.recipe(**{"cache.root": sealed_cache.parent})
    result = run_precompute(recipe, report=quiet)
    assert (result.complete, result.shards_written) == (True, 0)
    gone = project.target.rename(project.folder / "elsewhere")
    try:
        assert run_precompute(recipe, report=quiet).complete
    finally:
        gone.rename(project.target)


def test_dry_run_writes_no_shard(project: TinyProject, tmp_path: Path) -> None:
    lines: list[str] = []
    result = run_precompute(project.recipe(**{"cache.root": tmp_path}), dry_run=True, report=lines.append)
    assert not result.complete
    assert not list(Path(result.folder).rglob("*.arrow")) or not (Path(result.folder) / "shards").exists()
    assert any("GB in" in line for line in lines) and any("bytes:" in line for line in lines)


def test_sample_with_nan_is_refused_by_id_and_the_others_are_kept(project: TinyProject, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(project.target, tmp_path / "target"))
    weights = load_file(broken / "model.safetensors")
    counts = Cache.open(cache_of(project, tmp_path / "a").folder)
    rare = rare_token(counts)
    weights["model.embed_tokens.weight"][rare] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    cache = cache_of(project, tmp_path / "b", **{"target.path": broken})
    refused = [
        r for path in sorted((cache.folder / "shards").glob("*.json")) for r in json.loads(path.read_text())["refused"]
    ]
    holders = {counts.index.sample_ids[i] for i in range(counts.num_samples) if rare in counts.read(i).input_ids}
    assert {entry["sample_id"] for entry in refused} == holders and holders
    assert all("not finite from token" in entry["reason"] for entry in refused)
    assert cache.num_samples == counts.num_samples - len(holders)
    assert cache.manifest.drops["refused"] == len(holders)


def rare_token(cache: Cache) -> int:
    """A token that a few samples hold."""
    holders = np.zeros(cache.spec.vocab_size, int)
    for sample in range(cache.num_samples):
        holders[np.unique(cache.read(sample).input_ids)] += 1
    return int(np.flatnonzero((holders > 0) & (holders < 5))[-1])


def test_new_cache_beside_one_of_the_same_name_says_what_differs(project: TinyProject, tmp_path: Path) -> None:
    run_precompute(project.recipe(**{"cache.root": tmp_path}), dry_run=True, report=quiet)
    lines: list[str] = []
    recipe = project.recipe(**{"cache.root": tmp_path, "data.max_length": 99})
    run_precompute(recipe, dry_run=True, report=lines.append)
    assert "data.max_length: 256 -> 99" in lines[0]


def test_disk_that_is_too_small_is_refused_before_the_first_forward(
    project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    with pytest.raises(ResourceError, match=r"the cache needs .* GB, .* free"):
        run_precompute(project.recipe(**{"cache.root": tmp_path}), report=quiet)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"cache.aux_layer_ids": [1, 1, 2]}, TargetError, "each boundary may be given once"),
        ({"cache.aux_layer_ids": [1, 4, 9]}, TargetError, "8 layers"),
        ({"cache.aux_layer_ids": [0, 4, 5]}, TargetError, "boundaries are 1..8"),
        ({"vocab.draft_size": 0}, VocabError, "positive"),
        ({"vocab.draft_size": -3}, VocabError, "positive"),
        ({"target.path": "/nowhere/at/all"}, TargetError, "/nowhere/at/all"),
        ({"data.sources.0.path": "/nowhere.jsonl"}, DataError, "/nowhere.jsonl"),
        ({"data.max_length": 2}, DataError, "no sample is left.*empty_mask"),
        ({"vocab.draft_size": 2}, VocabError, "forced into a draft vocabulary of 2"),
        ({"precompute.device": "cuda:99"}, ConfigError, "CUDA device"),
    ],
)
def test_bad_settings_are_told_before_anything_is_computed(
    project: TinyProject, tmp_path: Path, overrides: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run_precompute(project.recipe(**{"cache.root": tmp_path, **overrides}), report=quiet)
    assert not list(tmp_path.iterdir())


def test_prompts_that_were_not_answered_yet_are_told_by_every_reader(project: TinyProject, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    regenerate = f"{{sources: [{{path: {project.sources[0]}}}], output: {answers}}}"
    sources = f"[{{path: {answers}}}]"
    recipe = project.recipe(**{"cache.root": tmp_path, "data.sources": sources, "regenerate": regenerate})
    for read in (run_precompute, estimate_recipe, partial(preview_recipe, count=1, colour=False)):
        with pytest.raises(DataError, match=r"answers\.jsonl: not written yet; run `eaglepipe data regenerate`"):
            read(recipe)


def test_root_that_is_a_file_is_told(project: TinyProject, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EaglepipeError, match="not writable"):
        run_precompute(project.recipe(**{"cache.root": tmp_path / "file"}), report=quiet)


def test_repeated_rows_are_dropped_and_counted_and_one_id_for_two_rows_is_an_error(
    project: TinyProject, tmp_path: Path
) -> None:
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there."}]}
    other = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Good day."}]}
    twice = tmp_path / "twice.jsonl"
    twice.write_text("".join(json.dumps(r) + "\n" for r in (row, row, other)))
    overrides = {"cache.root": tmp_path, "data.sources": f"[{{path: {twice}}}]"}
    result = run_precompute(project.recipe(**overrides), report=quiet)
    assert (result.samples, result.drops) == (2, {"duplicate": 1})
    same_id = tmp_path / "same-id.jsonl"
    same_id.write_text("".join(json.dumps({"id": "x", **r}) + "\n" for r in (row, other)))
    overrides["data.sources"] = f"[{{path: {same_id}}}]"
    with pytest.raises(DataError, match=r"sample id.*x.*2 different samples"):
        run_precompute(project.recipe(**overrides), report=quiet)


@pytest.mark.parametrize("text", ["3", "a/b", "2/2", "-1/2", "1/0"])
def test_workers_that_are_no_share_are_refused(text: str) -> None:
    with pytest.raises(EaglepipeError, match="--workers"):
        parse_worker(text)


def test_states_that_overflow_only_in_the_codec_are_refused(project: TinyProject, tmp_path: Path) -> None:
    loud = Path(shutil.copytree(project.target, tmp_path / "target"))
    weights = load_file(loud / "model.safetensors")
    weights["model.embed_tokens.weight"] *= 1e7
    save_file(weights, loud / "model.safetensors", metadata={"format": "pt"})
    narrow = {"target.path": loud, "cache.root": tmp_path / "a", "cache.aux_codec": "fp16"}
    blamed = r"are lost.*data\.max_drop_fraction(.|\n)*codec fp16 of cache\.aux_codec overflows"
    with pytest.raises(DataError, match=blamed):
        run_precompute(project.recipe(**narrow), report=quiet)
    wide = {**narrow, "cache.root": tmp_path / "b", "cache.aux_codec": "bf16"}
    assert run_precompute(project.recipe(**wide), report=quiet).drops == {}
