"""Deviations that were planted in a copy of a cache are those that the comparison reports."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eaglepipe.cache.reader import Cache
from eaglepipe.cache.types import CachedSample
from eaglepipe.cache_tools import recode
from eaglepipe.cache_tools.deviation import RecodeSums
from eaglepipe.cache_tools.recode import Changes, recode_cache
from eaglepipe.cache_tools.reencode import Reencoder
from eaglepipe.cache_tools.values.compare import diff_values
from eaglepipe.errors import CacheError
from tests.cache.derived import aux_of, few, make_cache, rows_of, samples
from tests.processes import run_eaglepipe
from tests.tiny_project import TinyProject


def test_a_cache_deviates_from_itself_by_nothing(full_cache: Path) -> None:
    report = diff_values(full_cache, full_cache, tolerance=0.0)
    assert report.beyond == () and report.samples == len(samples(full_cache))
    assert all(values["max"] == values["rms"] == 0.0 for values in report.states.values())
    assert set(report.states) == {f"aux_hidden_states[{layer}]" for layer in (2, 4, 5)} | {"last_hidden_states"}
    assert all(values["different"] == 0 for values in report.equal.values())
    assert (
        report.probabilities is not None and report.probabilities["rows"] == report.states["last_hidden_states"]["rows"]
    )


def test_other_codecs_and_kinds_are_compared_after_decoding(
    full_cache: Path, dense_cache: Path, tmp_path: Path
) -> None:
    """Against the plain reader of the tests, and float64."""
    recode_cache(tmp_path / "int8", full_cache, Changes(aux_codec="int8", codec="fp16"))
    report = diff_values(full_cache, tmp_path / "int8")
    one, other = aux_of(full_cache), aux_of(tmp_path / "int8")
    for place, layer in enumerate((2, 4, 5)):
        a, b = (torch.cat([found[name][:, place] for name in one]).double() for found in (one, other))
        relative = (b - a).norm(dim=-1) / a.norm(dim=-1)
        values = report.states[f"aux_hidden_states[{layer}]"]
        assert values["max"] == pytest.approx(float(relative.max())) and values["rows"] == len(a)
        assert values["mean"] == pytest.approx(float(relative.mean()))
        assert values["rms"] == pytest.approx(float((b - a).norm() / a.norm()))
        assert values["max_absolute"] == pytest.approx(float((b - a).abs().max()))
    rows, others = (torch.cat(list(rows_of(folder).values())).double() for folder in (full_cache, tmp_path / "int8"))
    relative = (others - rows).norm(dim=-1) / rows.norm(dim=-1)
    assert report.states["last_hidden_states"]["max"] == pytest.approx(float(relative.max()))

    mixed = diff_values(full_cache, dense_cache)
    assert "last_hidden_states" in mixed.not_compared and "last_hidden_states" not in mixed.states
    recode_cache(tmp_path / "dense", full_cache, Changes(supervision="dense", codec="fp32"))
    p, q = (torch.cat(list(rows_of(folder).values())).double() for folder in (tmp_path / "dense", dense_cache))
    q = q / q.sum(dim=-1, keepdim=True)  # as training reads them
    found = mixed.probabilities
    assert found is not None and found["max"] == pytest.approx(float((p - q).abs().max()), rel=1e-3)
    assert 0 <= found["kl_mean"] <= found["kl_max"] < 1e-3


def test_sparse_rows_are_compared_where_they_are_stored(full_cache: Path, dense_cache: Path, tmp_path: Path) -> None:
    recode_cache(tmp_path / "sparse", full_cache, Changes(supervision="sparse", tolerance=0.1))
    report = diff_values(tmp_path / "sparse", full_cache)
    assert report.probabilities is not None and report.probabilities["rows"] > 0
    assert report.probabilities["max"] < 2e-3 and report.probabilities["kl_max"] < 1e-3
    assert diff_values(tmp_path / "sparse", tmp_path / "sparse").probabilities["max"] == 0.0


def rewrite(cache: Path, out: Path, change: Callable[[CachedSample], CachedSample]) -> Path:
    """Make a copy of a cache with float32 aux states whose samples went through `change`."""

    class Changing(Reencoder):
        def convert(self, sample: CachedSample) -> tuple[CachedSample | None, RecodeSums]:
            new, sums = super().convert(sample)
            assert new is not None
            return change(new), sums

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recode, "Reencoder", Changing)
        recode_cache(out, cache, Changes(aux_codec="fp32"))
    return out


def test_planted_deviations_are_found_and_judged(full_cache: Path, tmp_path: Path) -> None:
    name = min(samples(full_cache))
    drafted = Cache.open(full_cache).vocab.selected_token_ids.numpy()

    def plant(sample: CachedSample) -> CachedSample:
        if sample.sample_id != name:
            return sample
        row = int(sample.position_mask.argmax())
        mass, top1 = sample.draft_mass.copy(), sample.target_top1.copy()
        mass[row] -= np.float32(0.01)
        top1[row] = next(token for token in drafted if token != top1[row])
        states = sample.aux_payload.copy().view(np.float32).reshape(-1, 3, 32)
        states[3, 1] *= np.float32(1.001)
        payload = states.reshape(len(states), -1).view(np.uint8)
        return replace(sample, draft_mass=mass, target_top1=top1, aux_payload=payload)

    report = diff_values(full_cache, rewrite(full_cache, tmp_path / "b", plant), tolerance=1e-6)
    assert report.states["aux_hidden_states[4]"]["max"] == pytest.approx(1e-3, rel=1e-3)
    assert all(report.states[f"aux_hidden_states[{layer}]"]["max"] == 0.0 for layer in (2, 5))
    assert report.draft_mass is not None and report.draft_mass["max"] == pytest.approx(0.01, rel=1e-4)
    assert report.equal["target_top1"]["different"] == 1 and report.equal["supervised"]["different"] == 0
    assert [what.split(":")[0].split(" ")[0] for what in report.beyond] == [
        "aux_hidden_states[4]",
        "draft_mass",
        "target_top1",
    ]
    assert diff_values(full_cache, tmp_path / "b", tolerance=0.02).within_tolerance


def test_masks_and_tokens_that_differ_are_named(full_cache: Path, tmp_path: Path) -> None:
    first, second = sorted(samples(full_cache))[:2]

    def plant(sample: CachedSample) -> CachedSample:
        mask, ids = sample.loss_mask.copy(), sample.input_ids.copy()
        if sample.sample_id == first:
            mask[0] = ~mask[0]
        if sample.sample_id == second:
            ids[1] = (ids[1] + 1) % 300
        return replace(sample, loss_mask=mask, input_ids=ids)

    report = diff_values(full_cache, rewrite(full_cache, tmp_path / "b", plant), tolerance=1.0)
    assert set(report.places) == {f"loss_mask of {first}, token 0", f"input_ids of {second}"}
    assert report.equal["input_ids"] == {
        "different": 1,
        "rows": report.samples,
        "share_equal": 1 - 1 / report.samples,
    }
    assert report.beyond == ("input_ids differ", "loss_mask differ")
    assert first in report.table() and second in report.table()


def test_samples_of_one_cache_only_are_counted_and_others_tokens_named(
    project: TinyProject, full_cache: Path, tmp_path: Path
) -> None:
    fewer = json.dumps([{"path": str(project.sources[0]), "max_samples": 4}])
    part = make_cache(project, tmp_path / "part", **{**few(project), "data.sources": fewer})
    report = diff_values(full_cache, part, tolerance=1.0)
    assert (report.only_a, report.only_b) == (len(samples(full_cache)) - len(samples(part)), 0)
    assert f"{report.only_a} samples are in one cache only" in report.beyond
    other = json.dumps([{"path": str(project.sources[2]), "max_samples": 4}])
    strange = make_cache(project, tmp_path / "strange", **{**few(project), "data.sources": other})
    with pytest.raises(CacheError, match="share no sample"):
        diff_values(full_cache, strange)


def test_the_command_prints_a_table_and_json_and_judges_by_a_tolerance(full_cache: Path, dense_cache: Path) -> None:
    pair = (str(full_cache), str(dense_cache))
    done = run_eaglepipe("cache", "diff", *pair, "--values")
    assert done.returncode == 0 and "aux_hidden_states[2]" in done.stdout and "target_probs" in done.stdout
    done = run_eaglepipe("cache", "diff", *pair, "--values", "--tolerance", "1e-9", "--json")
    assert done.returncode == 2 and json.loads(done.stdout)["beyond"]
    done = run_eaglepipe("cache", "diff", *pair, "--tolerance", "1")
    assert done.returncode == 2 and "--values" in done.stderr
