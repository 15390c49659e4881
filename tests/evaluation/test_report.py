"""The report of a tiny run, and the statistics that it plots of a cache."""

import base64
import re
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from eaglepipe.cache.reader import Cache
from eaglepipe.cache_tools.recode import Changes, recode_cache
from eaglepipe.errors import EaglepipeError
from eaglepipe.evaluation.report.cache_statistics import cache_statistics
from eaglepipe.evaluation.report.page import best_step, write_report
from eaglepipe.train import run_training
from tests.processes import start
from tests.tiny_project import TinyProject

PLOTS = {"loss", "acceptance", "depth", "speed", "cache"}


@pytest.fixture(scope="module")
def run(project: TinyProject, sealed_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "run"
    run_training(project.recipe(**{"train.output_dir": str(folder)}), [sealed_cache])
    return folder


@pytest.fixture(scope="module")
def page(run: Path, sealed_cache: Path) -> Path:
    return write_report(run, [sealed_cache])


def test_the_page_embeds_every_plot_that_is_beside_it(page: Path) -> None:
    embedded = re.findall(r'alt="(\w+)" src="data:image/png;base64,([^"]+)"', page.read_text())
    assert {name for name, _ in embedded} == PLOTS
    for name, data in embedded:
        png = base64.b64decode(data)
        assert png.startswith(b"\x89PNG") and png == (page.parent / f"{name}.png").read_bytes()


def test_a_second_report_is_the_same_bytes(page: Path, run: Path, sealed_cache: Path) -> None:
    first = page.read_bytes()
    assert write_report(run, [sealed_cache]).read_bytes() == first


def test_the_page_gives_the_origin_of_the_draft_vocabulary(page: Path, sealed_cache: Path) -> None:
    vocab = Cache.open(sealed_cache).vocab
    chosen = f"{vocab.size:,} of {vocab.target_size:,} tokens, chosen from all samples of the cache, held-out ones"
    assert vocab.size < vocab.target_size and chosen in page.read_text()


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(EaglepipeError, match=re.escape(str(tmp_path))):
        write_report(tmp_path)


def report_without_matplotlib(run: Path, cache: Path) -> None:
    """Report in a child, where neither matplotlib nor what imports it has been imported yet."""
    for name in [name for name in sys.modules if name.startswith(("matplotlib", "eaglepipe.evaluation.report"))]:
        del sys.modules[name]
    sys.modules["matplotlib"] = None  # type: ignore[assignment]
    import_module("eaglepipe.evaluation.report.page").write_report(run, [cache])


def test_without_matplotlib_the_error_names_the_extra_to_install(run: Path, sealed_cache: Path) -> None:
    done = start(report_without_matplotlib, run, sealed_cache).wait()
    assert done.returncode != 0 and "eaglepipe[plots]" in done.stderr


def test_entropy_and_coverage_are_those_of_the_stored_rows(sealed_cache: Path) -> None:
    cache, figures = Cache.open(sealed_cache), cache_statistics([sealed_cache], max_rows=10_000)
    head = cache.start_tensors()["lm_head.weight"].float()
    entropy, mass, covered = [], [], 0
    for number in range(cache.num_samples):
        sample = cache.read(number)
        rows = torch.from_numpy(sample.supervision["last_hidden_states"].copy()).view(torch.bfloat16).float()
        probs = (rows @ head.T).double().softmax(-1)
        entropy += (-(probs * probs.log()).sum(-1)).tolist()
        mass += sample.draft_mass[sample.supervised].tolist()
        covered += int(sample.position_mask.sum())
    np.testing.assert_allclose(np.sort(figures.entropy), np.sort(entropy), rtol=1e-4)
    np.testing.assert_allclose(np.sort(figures.draft_mass), np.sort(mass), rtol=1e-6)
    assert figures.covered == covered / len(entropy)
    assert figures.num_tokens.tolist() == cache.index.num_tokens.tolist()


def test_entropy_of_sparse_rows_counts_the_tail_as_one_token(sealed_cache: Path, tmp_path: Path) -> None:
    recode_cache(tmp_path / "sparse", sealed_cache, Changes(supervision="sparse", tolerance=0.5, max_entries=4))
    sparse, exact = cache_statistics([tmp_path / "sparse"]), cache_statistics([sealed_cache])
    assert len(sparse.entropy) == len(exact.entropy)
    assert sparse.entropy.max() <= np.log(5) + 1e-6 < exact.entropy.max()


def test_the_best_step_has_the_longest_acceptance_and_is_never_the_first() -> None:
    def row(step: int, length: float, loss: float) -> dict[str, float]:
        return {"step": step, "simulated_acceptance_length": length, "loss": loss}

    assert best_step([row(0, 9.0, 0.1), row(10, 2.0, 3.0), row(20, 3.0, 2.0), row(30, 3.0, 1.0)]) == 30
    assert best_step([row(0, 9.0, 0.1)]) == -1
