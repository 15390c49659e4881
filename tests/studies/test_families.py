import fcntl
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from eaglepipe.cache.opening import load_manifest
from eaglepipe.cache.storage import WORK_FOLDER
from eaglepipe.errors import ConfigError, EaglepipeError
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.load import dump_recipe, load_recipe
from tests.processes import run_eaglepipe
from tests.studies import families_runs
from tests.studies.families import FAMILIES, Budget, _steps, _unserved, measure_families
from tests.studies.families_base import DEPTH, block_boundaries, boundaries_of, demo_base, recipe_base
from tests.studies.families_report import FamiliesReport, FamilyResult, FamilyRun
from tests.studies.families_runs import finished, run_command
from tests.studies.spread import Spread
from tests.tiny_project import make_project


def result(name: str, lengths: tuple[float, ...], conditional: tuple[float, ...]) -> FamilyResult:
    return FamilyResult(
        name=name,
        what=f"a family called {name}",
        settings=(),
        steps=5,
        runs=tuple(
            FamilyRun(
                seed=seed,
                acceptance_length=length,
                accuracy_by_depth=conditional,
                conditional_acceptance_by_depth=conditional,
                heldout_samples=9,
                seconds=123.4,
            )
            for seed, length in enumerate(lengths)
        ),
    )


FLAT, DECAYED = (0.7, 0.8, 0.8, 0.76), (0.8, 0.6, 0.3, 0.2)
REPORT = FamiliesReport(
    budget="5 steps",
    seeds=(0, 1),
    cache="somewhere",
    families=(
        result("eagle3", (4.0, 4.2), FLAT),
        result("eagle3-k1", (2.5, 2.5), DECAYED),
        result("eagle3-last-aux", (3.5, 3.5), FLAT),
    ),
)


def test_depth_is_judged_by_its_end_and_by_its_lowest_point() -> None:
    assert [family.flatness for family in REPORT.families] == pytest.approx([0.95, 1 / 3, 0.95])
    assert [family.kept for family in REPORT.families] == pytest.approx([0.76 / 0.7, 0.25, 0.76 / 0.7])
    recovered = result("k1", (1.8,), (0.74, 0.06, 0.16, 0.69))  # the few slots that survive depth 2 are easy ones
    assert recovered.kept == pytest.approx(0.06 / 0.74)
    assert (result("one", (1.5,), (0.5,)).flatness, result("none", (1.0,), (0.0, 0.0)).kept) == (0.0, 0.0)


def test_expectations_are_judged_as_far_as_their_rows_are_there() -> None:
    assert REPORT.expectations() == {
        "trained depth is flat": True,
        "untrained depth decays": True,
        "EAGLE-3: three aux layers beat the last of them alone, by 0.600 ±0.141": True,
    }
    worse = result("eagle3", (3.0, 3.9), DECAYED)
    turned = replace(REPORT, families=(worse, *REPORT.families[1:]))
    assert [*turned.expectations().values()] == [False, True, False]
    assert replace(REPORT, families=REPORT.families[1:]).expectations() == {}


@pytest.mark.parametrize(
    ("lengths", "holds"),
    [((3.9, 3.7), True), ((3.9, 3.6), False), ((3.9,), True), ((3.5,), False)],
)
def test_a_lead_within_two_standard_errors_is_none(lengths: tuple[float, ...], holds: bool) -> None:
    single = result("eagle3.1-top-layer", (3.5,) * len(lengths), FLAT)
    report = replace(REPORT, families=(result("eagle3.1", lengths, FLAT), single))
    ((claim, found),) = report.expectations().items()
    assert claim.startswith("EAGLE-3.1: three aux layers beat the target's last layer alone, by ") and found is holds


def test_one_seed_has_no_deviation_and_two_have() -> None:
    assert (Spread.of([2.0]).deviation, Spread.of([2.0]).show()) == (None, "2.000")
    assert Spread.of([-1.0, -2.0]).show(2, sign="+") == "-1.50 ±0.71"
    assert Spread.of([1.5, 1.5]).show(1, sign="+") == "+1.5 ±0.0"


def test_table_fits_a_screen_and_json_holds_its_figures() -> None:
    lines = REPORT.table().splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 120
    assert any("4.100 ±0.141" in line and "95" in line and "123 s" in line for line in lines)
    fields = json.loads(json.dumps(REPORT.to_json()))
    assert fields["families"][0]["flatness"] == pytest.approx(0.95) and len(fields["expectations"]) == 3


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a finished demo leaves it, with a target of random weights."""
    folder = tmp_path_factory.mktemp("demo")
    project = make_project(folder, rows=24)
    project.target.rename(folder / "target.moved-away")
    (folder / "data" / "regenerated.jsonl").write_bytes(b"".join(path.read_bytes() for path in project.sources))
    (folder / "demo.yaml").write_text(dump_recipe(load_recipe(project.recipe_file, ["train.max_steps=2"])))
    return folder


@pytest.fixture(scope="module")
def cache(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = demo_base(demo, tmp_path_factory.mktemp("families"))
    return Path(run_precompute(recipe, report=lambda _: None).folder)


def test_equal_times_are_measured_once_and_become_steps(demo: Path, cache: Path, tmp_path: Path) -> None:
    base, said = tmp_path / "families.yaml", list[str]()
    base.write_text(dump_recipe(demo_base(demo, tmp_path)))
    boundaries = boundaries_of(cache)
    rows = {name: tuple(one.format(**boundaries) for one in FAMILIES[name].settings) for name in ("eagle3", "peagle")}
    budget = Budget(seconds=60.0, clock="cpu")
    steps = _steps(base, rows, cache, budget, tmp_path, said.append)
    assert steps == json.loads((tmp_path / "steps.json").read_text()) and min(steps.values()) > 1
    for name, line in zip(rows, said[1:], strict=True):
        milliseconds = int(line.removeprefix(f"{name}: ").partition(" ms")[0])
        assert steps[name] == pytest.approx(60_000 / milliseconds, rel=0.6 / milliseconds + 0.5 / steps[name])
    said.clear()
    assert _steps(base, rows, cache, budget, tmp_path, said.append) == steps and not said


def test_blocks_read_the_boundaries_of_publications_as_far_as_the_cache_holds_them(cache: Path) -> None:
    assert block_boundaries(36) == (2, 10, 18, 26, 34) and block_boundaries(8) == (2, 3, 4, 5, 6)
    assert boundaries_of(cache) == {
        "aux_layers": [2, 4, 5],
        "last_aux": 5,
        "top_layer": 8,
        "block_layers": [2, 3, 4, 5, 6],
    }


def test_rows_that_a_cache_does_not_serve_are_named(demo: Path, tmp_path: Path) -> None:
    recipe = demo_base(demo, tmp_path)
    whole, cut = {"top_layer": 8}, recipe.cache.model_copy(update={"last_hidden": "supervised"})
    assert _unserved(recipe, tuple(FAMILIES), whole) == {}
    lacking = _unserved(recipe.model_copy(update={"cache": cut}), ("eagle1", "eagle3-top-layer", "dflash"), {})
    assert lacking == {
        "eagle1": "EAGLE-1 needs a cache with cache.last_hidden=all",
        "eagle3-top-layer": "the cache does not hold the boundary after the target's last layer",
    }


def test_a_recipe_of_another_family_is_no_base(demo: Path) -> None:
    settings = ["train.objective=peagle", f"train.ttt_steps={DEPTH}"]
    with pytest.raises(ConfigError, match=r"set train\.objective to eagle3"):
        recipe_base(demo / "demo.yaml", settings)
    assert recipe_base(demo / "demo.yaml", ["train.seed=4"]).train.ttt_steps == DEPTH


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_a_recipe(name: str, demo: Path, tmp_path: Path) -> None:
    (tmp_path / "families.yaml").write_text(dump_recipe(demo_base(demo, tmp_path)))
    boundaries = {"aux_layers": [2, 4, 5], "last_aux": 5, "top_layer": 8, "block_layers": [2, 3, 4, 5, 6]}
    settings = [setting.format(**boundaries) for setting in FAMILIES[name].settings]
    load_recipe(tmp_path / "families.yaml", settings)


def test_a_demo_that_says_no_steps_is_told(tmp_path: Path, demo: Path) -> None:
    shutil.copytree(demo, tmp_path / "demo")
    (tmp_path / "demo" / "demo.yaml").write_text(dump_recipe(load_recipe(demo / "demo.yaml", ["train.max_steps=null"])))
    with pytest.raises(ConfigError, match=r"no train\.max_steps: give --steps"):
        measure_families(demo_base(tmp_path / "demo", tmp_path), tmp_path, names=["eagle3-k1"], report=lambda _: None)


def run_warm(arguments: Sequence[str]) -> tuple[int, str]:
    done = run_eaglepipe(*arguments)
    return done.returncode, done.stdout


def test_a_family_is_trained_from_a_cache_of_its_own_and_evaluated_at_full_depth(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as the demo's draft; another process has begun a shard of the cache, and lets go of it."""
    monkeypatch.setattr(families_runs, "OTHERS_WAIT_S", 0.1)
    monkeypatch.setattr(families_runs, "run_process", run_warm)
    planned = run_precompute(demo_base(demo, tmp_path), dry_run=True, report=lambda _: None)
    claims = Path(planned.folder) / WORK_FOLDER / "claims"
    claims.mkdir(parents=True)
    said: list[str] = []
    with (claims / "00000.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def hear(message: str) -> None:
            said.append(message)
            if "another process" in message:
                fcntl.flock(other, fcntl.LOCK_UN)

        report = measure_families(demo_base(demo, tmp_path), tmp_path, names=["eagle3-k1"], seeds=(1,), report=hear)
    assert sum("another process" in message for message in said) == 1
    assert load_manifest(Path(report.cache)).complete and Path(report.cache).parent == tmp_path / "caches"
    (family,) = report.families
    assert len(family.conditional_acceptance_by_depth) == DEPTH and family.acceptance_length.mean >= 1.0
    assert [run.seed for run in family.runs] == [1] and family.steps == 2
    trained = json.loads((tmp_path / "2-steps" / "seed-1" / "eagle3-k1" / "train.json").read_text())
    assert trained["steps"] == 2 and trained["simulated_acceptance_length_end"] == family.runs[0].acceptance_length


def test_only_a_finished_run_of_the_same_recipe_is_read_back(demo: Path, tmp_path: Path) -> None:
    recipe = load_recipe(demo / "demo.yaml", ["train.max_steps=2"])
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert finished(tmp_path, recipe) is None
    (tmp_path / "train.json").write_text(json.dumps({"steps": 2}))
    assert finished(tmp_path, recipe) == {"steps": 2}
    assert finished(tmp_path, load_recipe(demo / "demo.yaml", ["train.max_steps=2", "train.seed=1"])) is None
    (tmp_path / "train.json").write_text(json.dumps({"steps": 1}))
    assert finished(tmp_path, recipe) is None


def test_failed_run_ends_the_table_with_its_exit_code(tmp_path: Path) -> None:
    with pytest.raises(EaglepipeError, match="`eaglepipe no-such-stage` ended with exit code 2") as caught:
        run_command("no-such-stage", [str(tmp_path / "nothing.yaml")])
    assert caught.value.exit_code == 2


def test_unknown_family_and_unfinished_demo_are_told(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no family 'eagle4'; there are eagle3,"):
        measure_families(demo_base(demo, tmp_path), tmp_path, names=["eagle4"])
    with pytest.raises(ConfigError, match="is no finished demo"):
        demo_base(tmp_path, tmp_path)
