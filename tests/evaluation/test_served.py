"""The judgement of a served draft that needs no engine: counts, gaps, their causes, and engines that are not there."""

import importlib.util
import shutil
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from eaglepipe.commands.evaluate import engine_arguments, engine_options
from eaglepipe.errors import ConfigError, EaglepipeError, ResourceError
from eaglepipe.evaluation.figures.engine_count import EngineCount
from eaglepipe.evaluation.served.causes import likely_causes, with_causes
from eaglepipe.evaluation.served.engine_process import EngineJob, decoded_answer, require_engine, run_engine
from eaglepipe.evaluation.served.gap import Gap
from eaglepipe.evaluation.served.served import _room
from eaglepipe.export.write import export_draft
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.train import run_training
from tests.evaluation.faulty_exports import FAULTS
from tests.tiny_project import TinyProject

JOB = EngineJob(arguments={"model": "nowhere"}, sampling={}, warm_up=[], prompt_sets=[[[1, 2]]])


@pytest.fixture(scope="module")
def export(project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    settings = {"draft.fc_norm": "true", "draft.norm_output": "true", "train.max_steps": 1}
    recipe = project.recipe(
        **{"cache.root": str(folder / "caches"), "train.output_dir": str(folder / "run"), **settings}
    )
    run_training(recipe, [Path(run_precompute(recipe, report=lambda _: None).folder)])
    return export_draft(folder / "run", "vllm", out=folder / "export", dtype="float32").folder


def gap(*shares: int) -> Gap:
    return Gap(
        method="EAGLE-3, chain of 2",
        data="chat",
        engine="vLLM 0.32.0",
        served=EngineCount(rounds=100, accepted_by_position=shares),
        real=EngineCount(rounds=100, accepted_by_position=(80, 60)),
        length_interval=(-0.5, -0.3),
        is_beyond_noise=True,
        prompts=4,
        other_texts=0,
    )


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_an_export_is_named(fault: str, export: Path, tmp_path: Path) -> None:
    spoil, cause = FAULTS[fault]
    spoil(faulty := Path(shutil.copytree(export, tmp_path / "faulty")))
    (found,) = likely_causes(gap(2, 1), faulty, export, (2, 4, 5))
    assert cause in found


def test_an_engine_that_fails_on_a_faulty_export_is_explained_by_it(export: Path, tmp_path: Path) -> None:
    spoil, cause = FAULTS["ids in d2t"]
    spoil(faulty := Path(shutil.copytree(export, tmp_path / "faulty")))
    failure = ResourceError("vLLM failed: IndexError")
    explained = with_causes(failure, faulty, export, (2, 4, 5))
    assert isinstance(explained, ResourceError)
    first, second = str(explained).splitlines()
    assert first == str(failure) and "likely cause" in second and cause in second
    assert str(with_causes(failure, export, export, (2, 4, 5))) == str(failure)


def test_a_gap_without_a_difference_is_told_by_its_shape(export: Path) -> None:
    for shares, words in (
        ((2, 1), "not even first guesses"),
        ((79, 20), "state that a guess hands"),
        ((50, 30), "precision"),
    ):
        (found,) = likely_causes(gap(*shares), export, export, (2, 4, 5))
        assert words in found


def test_the_last_round_is_cut_as_the_answer_is_and_counted_in_full() -> None:
    answer = decoded_answer([7, 8, 9, 10], [1, 3])
    assert (answer.rounds, answer.accepted) == ((2, 1), (1, 3))
    assert sum(answer.rounds) == len(answer.token_ids) - 1
    assert decoded_answer([7, 8, 9], None).rounds == (1, 1)


def test_rounds_without_guesses_are_not_told_by_the_engine_and_add_a_token_each() -> None:
    answer = decoded_answer([7, 8, 9, 10, 11, 12], [1])
    assert sorted(answer.rounds) == [1, 1, 1, 2]
    assert answer.accepted == (1, 0, 0, 0)


def test_an_engine_has_room_for_rounds_beyond_the_longest_request_and_for_no_more_than_the_target() -> None:
    newest, guesses = 1, 5
    scheduled_ahead = 2 * (newest + guesses)
    assert _room(4000, 5, SimpleNamespace()) >= 4000 + scheduled_ahead + guesses
    assert _room(100, 5, SimpleNamespace(max_position_embeddings=110)) == 110
    assert _room(110, 5, SimpleNamespace(max_position_embeddings=110)) == 111  # an engine holds one token more


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed here")
def test_a_missing_vllm_is_named_with_the_command() -> None:
    for ask in (require_engine, partial(run_engine, JOB)):
        with pytest.raises(EaglepipeError, match=r"pip install .*--engine-python"):
            ask(Path(sys.executable))


def test_an_interpreter_that_ends_by_itself_shows_its_last_lines(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho the last words >&2\nexit 3\n")
    python.chmod(0o755)
    with pytest.raises(EaglepipeError, match=r"exit code 3(?s:.)*the last words"):
        run_engine(JOB, python)


def test_arguments_of_the_engine_are_json_or_named_values() -> None:
    texts = ['{"dtype": "bfloat16", "seed": 1}', "--max-model-len=4096", "dtype=float32", "enforce_eager=true"]
    assert engine_arguments(texts) == {"dtype": "float32", "seed": 1, "max_model_len": 4096, "enforce_eager": True}
    for text, words in (("4096", "NAME=VALUE"), ("{a", "not a JSON object"), ("model=x", "--target")):
        with pytest.raises(ConfigError, match=words):
            engine_arguments([text])


def test_another_engine_or_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--endpoint"):
        engine_options("sglang", None, [], None, lookup=False)
    with pytest.raises(ConfigError, match="no exported draft"):
        engine_options("vllm", None, [], tmp_path, lookup=False)
