"""Shards of Automodel: moved right again, they hold what stage 1 would have stored as `dense`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from eaglepipe.cache.reader import Cache
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.errors import DataError
from eaglepipe.precompute.imported.command import import_overrides
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.load import load_recipe
from eaglepipe.target.head_only import load_head_only
from tests.cache.derived import few, make_cache, samples
from tests.precompute.imported.foreign_files import States, states_of, write_nemo
from tests.stage_one import quiet
from tests.tiny_project import TinyProject


@pytest.fixture(scope="module")
def dense(project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {**few(project), "cache.supervision": "dense", "precompute.batch_tokens": 1}
    return make_cache(project, tmp_path_factory.mktemp("dense"), **settings)


@pytest.fixture(scope="module")
def states(project: TinyProject, dense: Path) -> list[States]:
    return states_of(project, dense)


@pytest.fixture(scope="module")
def shards(project: TinyProject, dense: Path, states: list[States], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that Automodel would write of the same samples, with the same draft vocabulary."""
    vocab, head = Cache.open(dense).vocab, load_head_only(project.recipe().target)
    probs = []
    for sample in states:
        logits = head.head_logits(sample.after_norm)
        covered = vocab.selected_token_mask[logits.argmax(dim=-1)]
        chosen = logits[:, vocab.selected_token_ids].softmax(dim=-1)
        probs.append(torch.cat([chosen, covered[:, None].float()], dim=1))
    manifest = {
        "selected_token_ids": vocab.selected_token_ids.tolist(),
        "aux_layer_ids": [1, 3, 4],
        "target_vocab_size": 320,
        "draft_vocab_size": 160,
    }
    return write_nemo(tmp_path_factory.mktemp("nemo") / "tool", states, probs, manifest)


def imported(project: TinyProject, folder: Path, root: Path, *overrides: str) -> Path:
    settings = [f"cache.root={root}", "cache.supervision=dense", *overrides]
    return Path(
        run_precompute(
            load_recipe(project.recipe_file, import_overrides("nemo", folder, settings)), report=quiet
        ).folder
    )


def test_distributions_are_those_of_stage_one(project: TinyProject, dense: Path, shards: Path, tmp_path: Path) -> None:
    cache = imported(project, shards, tmp_path)
    assert verify_cache(cache, full=True).ok
    own = {sample.input_ids[1:].tobytes(): sample for sample in samples(dense).values()}
    made = list(samples(cache).values())
    assert len(made) == len(own)
    assert torch.equal(Cache.open(cache).vocab.selected_token_ids, Cache.open(dense).vocab.selected_token_ids)
    for sample in made:
        expected = own[sample.input_ids[1:].tobytes()]
        for name in ("loss_mask", "supervised", "position_mask", "aux_payload"):
            assert np.array_equal(getattr(sample, name)[1:], getattr(expected, name)[1:]), name
        covered = sample.position_mask
        assert np.array_equal(sample.target_top1[covered], expected.target_top1[covered])
        probs, wanted = (s.supervision["target_probs"].view(np.float16).astype(np.float32) for s in (sample, expected))
        assert np.abs(probs - wanted).max() < 1e-3


def test_the_largest_entries_alone_are_read_too(project: TinyProject, shards: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "top"
    folder.mkdir()
    (folder / "manifest.json").write_text((shards / "manifest.json").read_text())
    for shard in shards.glob("*.safetensors"):
        tensors = load_file(shard)
        values, indices = tensors.pop("target_probs").topk(8, dim=-1)
        tensors["target_probs_values"] = values / values.sum(dim=-1, keepdim=True).clamp(min=1e-9)
        tensors["target_probs_indices"] = indices.int()
        save_file(tensors, folder / shard.name)
    cache = imported(project, folder, tmp_path / "caches", "cache.supervision=sparse")
    entries = np.concatenate([s.supervision["num_entries"] for s in samples(cache).values()])
    assert verify_cache(cache, full=True).ok and entries.min() >= 1 and entries.max() <= 12


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("aux_layer_ids", [1, 3, 5], r"boundaries \[2, 4, 6\].*set cache\.aux_layer_ids=\[2, 4, 6\]"),
        ("target_vocab_size", 321, "a target with 321 tokens, and target.path has 320"),
        ("selected_token_ids", [5, 7], r"set vocab\.draft_size=2"),
        ("format_version", 1, "version 1 of its format"),
    ],
)
def test_a_manifest_of_another_cache_is_refused(
    project: TinyProject, shards: Path, tmp_path: Path, field: str, value: object, message: str
) -> None:
    fields = json.loads((shards / "manifest.json").read_text())
    folder = tmp_path / "tool"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({**fields, field: value}))
    (folder / "shard-000000.safetensors").write_bytes((shards / "shard-000000.safetensors").read_bytes())
    with pytest.raises(DataError, match=message):
        imported(project, folder, tmp_path / "caches")


def test_last_hidden_states_are_named_as_lacking(project: TinyProject, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lacks last hidden states.*cache\.supervision=dense, sparse or sampled"):
        imported(project, shards, tmp_path, "cache.supervision=hidden")
