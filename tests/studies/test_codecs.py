"""The comparison of encodings: the same samples in the same order, judged on the exact cache, and kept when done."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eaglepipe.cache.reader import Cache
from eaglepipe.cache.supervision.distribution import TargetDistribution
from eaglepipe.cache_tools.recode import Changes, recode_cache
from eaglepipe.errors import CacheError, ConfigError
from eaglepipe.recipe.config import PROFILES
from eaglepipe.recipe.load import dump_recipe
from eaglepipe.train import run_training
from eaglepipe.training.data.order import split_samples
from eaglepipe.training.objectives.builders import build_eagle3_draft
from eaglepipe.training.run.ranks.distributed import join_world
from eaglepipe.training.run.run_plan import plan_run
from tests.cache.derived import sparse_rows_of
from tests.studies.codecs import measure_codecs
from tests.studies.codecs_judge import judge
from tests.studies.codecs_report import CodecsReport, VariantReport, describe_variant
from tests.studies.codecs_run import HELDOUT_FRACTION, RunResult, TrainingRun, train_one
from tests.studies.codecs_supervision import SupervisionError, measure_supervision
from tests.studies.codecs_variants import EXACT, VARIANTS, PairedSource, Variant, make_cache, renormalise
from tests.tiny_project import TinyProject

TOP_8 = Variant(name="sparse top 8", changes=Changes(supervision="sparse", tolerance=0.0, max_entries=8))
PLAIN = replace(TOP_8, name="sparse top 8, renormalised", renormalised=True)
FEW = (Variant(name=EXACT, changes=None), TOP_8, PLAIN)
STEPS = 2
DRAFT = {"draft.aux_layer_ids": [2, 5]}
"""Fewer of the layers than the cache holds."""


@pytest.fixture(scope="module")
def demo(project: TinyProject, sealed_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What of a finished demo the comparison needs."""
    folder = tmp_path_factory.mktemp("demo")
    shutil.copytree(sealed_cache, folder / "caches" / sealed_cache.name)
    (folder / "train").mkdir()
    (folder / "train" / "recipe.yaml").write_text(dump_recipe(project.recipe(**DRAFT)))
    return folder


@pytest.fixture(scope="module")
def report(demo: Path) -> CodecsReport:
    return measure_codecs(demo, seeds=(3,), max_steps=STEPS, jobs=1, variants=FEW)


@pytest.fixture(scope="module")
def sparse(sealed_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(TOP_8, sealed_cache, tmp_path_factory.mktemp("variants"))


def test_every_variant_gets_a_line_and_the_report_survives_json(report: CodecsReport) -> None:
    fields = json.loads(json.dumps(report.to_json()))
    assert [line["name"] for line in fields["variants"]] == [variant.name for variant in FEW]
    exact, bucket, plain = fields["variants"]
    assert exact["acceptance_length_difference"] == {"mean": 0.0, "deviation": None, "count": 1}
    assert exact["supervision"]["kl"] == pytest.approx(0.0, abs=1e-12)
    assert 1e-6 < bucket["supervision"]["kl"] < plain["supervision"]["kl"]
    assert bucket["bytes_per_token"] == plain["bytes_per_token"] < exact["bytes_per_token"]
    assert bucket["supervision"]["entries"] == 8.0
    assert all(variant.name in report.table() for variant in FEW)
    assert exact["states"]["aux_decibels"] == [None] * 3 and exact["states"]["last_decibels"] is None
    assert all(1 < peak < 32**0.5 for peak in [*exact["states"]["aux_peaks"], exact["states"]["last_peak"]])


def test_an_unknown_encoding_is_refused_with_the_known_ones(demo: Path) -> None:
    with pytest.raises(ConfigError, match=r"no encoding 'tinny'; there are exact, compact"):
        measure_codecs(demo, names=["tiny", "tinny"])


def test_exact_line_is_what_training_itself_says_of_all_held_out_samples(
    report: CodecsReport, project: TinyProject, sealed_cache: Path, tmp_path: Path
) -> None:
    settings = {
        **DRAFT,
        "train.output_dir": tmp_path,
        "train.seed": 3,
        "train.max_steps": STEPS,
        "train.heldout_fraction": HELDOUT_FRACTION,
    }
    trained = run_training(project.recipe(**settings), [sealed_cache])
    line = report.variants[0].runs[0]
    assert line.loss == pytest.approx(trained.heldout_loss_end, rel=1e-6)
    assert line.acceptance_length == trained.simulated_acceptance_length_end
    assert line.heldout_samples == trained.heldout_samples


def test_drafts_that_are_drawn_are_accepted_by_what_both_distributions_share(
    project: TinyProject, sealed_cache: Path
) -> None:
    """An untrained draft with a head of zeros draws evenly whatever it read: alpha from the cache alone."""
    cache = Cache.open(sealed_cache)
    source = PairedSource(cache, identity=cache.identity, renormalised=False)
    config = project.recipe().train.model_copy(update={"ttt_steps": 1, "eval_depth": None, "device": "cpu"})
    draft = build_eagle3_draft(source, project.recipe().draft, seed=0)
    draft.lm_head.weight.data.zero_()
    numbers, size = np.arange(4), len(cache.vocab.selected_token_ids)
    with join_world("cpu") as world:
        plan = plan_run(source, config, world)
        found = judge(draft, source, numbers, config=config, limits=plan.limits, world=world)
    distribution, shared, chains = TargetDistribution(cache), 0.0, 0
    for number in numbers.tolist():
        sample = cache.read(number)
        rows = np.flatnonzero(sample.supervised[1:])  # the first token has no draft before it
        chains += len(rows)
        every = np.arange(int(sample.supervised.sum()))
        probs = dict(zip(np.flatnonzero(sample.supervised).tolist(), distribution.of(sample, every), strict=True))
        for place in (rows + 1).tolist():
            if sample.position_mask[place]:
                shared += float((probs[place].double() * float(sample.draft_mass[place])).clamp(max=1 / size).sum())
    assert found.samples == 4
    assert found.loss == pytest.approx(np.log(size), rel=1e-5)
    assert found.sampled_acceptance_length == pytest.approx(1 + shared / chains, rel=1e-4)


def test_finished_training_is_read_back_and_another_number_of_steps_is_another_training(
    report: CodecsReport, demo: Path, sealed_cache: Path
) -> None:
    place = demo / "bench" / "codecs"
    run = TrainingRun(
        recipe_file=demo / "train" / "recipe.yaml",
        exact=next((demo / "caches").iterdir()),
        variant=PLAIN,
        cache=place / "caches" / "sparse-top-8",
        seed=3,
        max_steps=STEPS,
        results=place / "results",
    )
    assert run.result_file.exists()
    shown = json.loads(run.result_file.read_text())
    run.result_file.write_text(json.dumps({**shown, "loss": -1.0}))
    assert train_one(run).loss == -1.0
    assert not replace(run, max_steps=STEPS + 1).result_file.exists()
    assert not list(place.glob("results/*.run")), "checkpoints of finished trainings are of no use"


def test_variants_are_read_in_the_order_of_the_exact_cache(sealed_cache: Path, sparse: Path) -> None:
    exact, recoded = Cache.open(sealed_cache), Cache.open(sparse)
    assert recoded.identity != exact.identity
    paired = PairedSource(recoded, identity=exact.identity, renormalised=False)
    assert paired.identity == exact.identity
    assert paired.read(5).sample_id == exact.read(5).sample_id
    pairs = zip(paired.read(5).supervision.values(), recoded.read(5).supervision.values(), strict=True)
    assert all(np.array_equal(one, other) for one, other in pairs)


def test_renormalised_rows_keep_their_entries_and_proportions_and_have_no_tail(sparse: Path) -> None:
    sample = Cache.open(sparse).read(3)
    plain = renormalise(sample)
    assert not plain.supervision["tail_mass"].any()
    for (ids, probs, _), (new_ids, new_probs, _) in zip(sparse_rows_of(sample), sparse_rows_of(plain), strict=True):
        assert ids.tolist() == new_ids.tolist()
        assert new_probs == pytest.approx(probs / probs.sum(), rel=1e-3)


@pytest.mark.parametrize("variant", [TOP_8, PLAIN], ids=lambda variant: variant.name)
def test_divergence_counts_the_tail_evenly_and_as_one_outcome(
    sealed_cache: Path, sparse: Path, variant: Variant
) -> None:
    exact, recoded = Cache.open(sealed_cache), Cache.open(sparse)
    distribution, least = TargetDistribution(exact), 2.0**-25
    even, bucket, mass = [], [], []
    for number in split_samples(exact.index.sample_ids, HELDOUT_FRACTION).heldout.tolist():
        sample = recoded.read(number)
        probs = distribution.of(exact.read(number), np.arange(sample.supervised.sum())).double().numpy()
        for p, (ids, stored, stored_tail) in zip(probs, sparse_rows_of(sample), strict=True):
            tail = 0.0 if variant.renormalised else float(stored_tail)
            kept = stored / stored.sum() if variant.renormalised else stored
            q = np.full(len(p), tail / (len(p) - len(ids)))
            q[ids] = kept
            even.append(float((p * np.log(p / q.clip(least))).sum()))
            p_tail, q_tail = 1 - p[ids].sum(), max(tail, least)
            bucket.append(float((p[ids] * np.log(p[ids] / kept.clip(least))).sum() + p_tail * np.log(p_tail / q_tail)))
            mass.append(float(p[ids].sum()))
    found = measure_supervision(variant, sealed_cache, sparse)
    assert found.kl == pytest.approx(np.mean(even), rel=1e-3)
    assert found.kl_learned == pytest.approx(np.mean(bucket), rel=1e-3, abs=1e-6)
    assert found.mass == pytest.approx(np.mean(mass), rel=1e-6)


def test_folder_without_a_finished_demo_and_cache_that_is_not_exact_are_refused(
    demo: Path, sealed_cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="not a finished demo"):
        measure_codecs(tmp_path)
    shutil.copytree(demo / "train", tmp_path / "train")
    recode_cache(tmp_path / "caches" / "narrow", sealed_cache, Changes(aux_codec="int8"))
    with pytest.raises(CacheError, match=r"aux states in int8.*profile=exact"):
        measure_codecs(tmp_path)


def test_variants_cover_every_profile_and_every_narrow_codec() -> None:
    changes = {variant.name: variant.changes for variant in VARIANTS}
    assert PROFILES.keys() <= changes.keys() and changes[EXACT] is None
    assert {one.aux_codec for one in changes.values() if one is not None} >= {"fp8", "int8", "int4", "rot3", "rot4"}
    assert {one.codec for one in changes.values() if one is not None} >= {"int8", "rot5", "rot6"}
    assert {one.supervision for one in changes.values() if one is not None} >= {"dense", "sparse"}


def line(name: str, lengths: list[float]) -> VariantReport:
    exact = [result(seed, length) for seed, length in enumerate([4.0, 5.0])]
    runs = [result(seed, length) for seed, length in enumerate(lengths)]
    error = SupervisionError(kl=0.0, kl_learned=0.0, entries=1.0, mass=1.0)
    return describe_variant(name, runs, exact, bytes_per_token=1.0, aux_relative_rms=0.0, supervision=error)


def result(seed: int, length: float) -> RunResult:
    return RunResult(
        variant="",
        seed=seed,
        steps=1,
        heldout_samples=1,
        loss=1.0,
        acceptance_length=length,
        sampled_acceptance_length=length / 2,
        seconds=1.0,
    )


def test_differences_are_taken_seed_by_seed() -> None:
    compact = line("compact", [3.9, 5.1])
    assert compact.acceptance_length_difference.mean == pytest.approx(0.0)
    assert compact.acceptance_length_difference.deviation == pytest.approx(0.02**0.5)


def test_bucket_is_compared_with_the_same_entries_renormalised() -> None:
    lines = tuple(
        line(name, lengths) for name, lengths in [(EXACT, [4, 5]), ("a", [4, 5]), ("a, renormalised", [4, 4])]
    )
    report = CodecsReport(target="t", steps=1, seeds=(0, 1), heldout_samples=1, variants=lines)
    nearer, loss, sampled, greedy = report.verdicts()
    assert not nearer.holds
    assert (loss.value, loss.holds) == (0.0, False)
    assert (sampled.value, sampled.holds) == (0.25, True)
    assert (greedy.value, greedy.holds) == (0.5, True)


@pytest.mark.parametrize(("lost", "kept"), [(0.04, True), (0.06, False)])
def test_promise_of_compact_is_told_kept_or_broken(lost: float, kept: bool) -> None:
    lines = (line(EXACT, [4.0, 5.0]), line("compact", [4.0 - lost, 5.0 - lost]))
    report = CodecsReport(target="t", steps=1, seeds=(0, 1), heldout_samples=1, variants=lines)
    assert [verdict.holds for verdict in report.verdicts()] == [kept]
    assert ("holds" in report.table()) == kept and ("FAILS" in report.table()) != kept
