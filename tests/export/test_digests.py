"""A published draft is compared with its digests wherever it is read: any flipped bit is noticed, an edit explained."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from eaglepipe.cli import app
from eaglepipe.drafts.init_from import init_from
from eaglepipe.drafts.init_record import open_init
from eaglepipe.drafts.published_vocab import published_vocab
from eaglepipe.errors import CorruptError
from eaglepipe.evaluation.finished_run import open_run
from eaglepipe.evaluation.report.page import write_report
from eaglepipe.export.check.check import check_draft
from eaglepipe.export.layouts import ENGINES, Engine
from eaglepipe.export.push import push_folder
from eaglepipe.export.write import export_draft
from eaglepipe.files.digests import DIGESTS_FILE
from tests.export.made_drafts import VOCAB, MadeTarget, make_draft, save_draft

FLIPS = 50  # in each engine's folder


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[Engine, Path]:
    root = tmp_path_factory.mktemp("exports")
    draft = save_draft(make_draft(MadeTarget()), root / "draft")
    return {engine: export_draft(draft, engine, out=root / engine).folder for engine in ENGINES}


@pytest.fixture
def export(exports: dict[Engine, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(exports["hf"], tmp_path / "hf"))


@pytest.mark.parametrize("engine", ENGINES)
def test_every_flipped_bit_in_any_file_is_noticed(engine: Engine, exports: dict[Engine, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exports[engine], tmp_path / "export"))
    rng, files = random.Random(engine), sorted(folder.iterdir())
    assert [path.name for path in files] == ["README.md", "config.json", DIGESTS_FILE, "model.safetensors"]
    every_byte = [(path, at) for path in files for at in range(path.stat().st_size)]
    spread = [(path, rng.randrange(path.stat().st_size)) for path in files * 3]  # most bytes are the weights'
    for path, at in [*spread, *rng.sample(every_byte, FLIPS - len(spread))]:
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[at] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(CorruptError, match=path.name) as caught:
            check_draft(folder, engine)
        assert caught.value.exit_code == 3 and "\n" not in str(caught.value)
        path.write_bytes(whole)
    assert check_draft(folder, engine).ok


def test_command_ends_with_3_and_goes_on_without_the_digests(export: Path) -> None:
    (export / "config.json").write_text((export / "config.json").read_text().replace("128", "256"))
    arguments = ["export", "--check", str(export), "--to", "hf"]
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, CorruptError) and refused.exception.exit_code == 3
    assert "config.json (its bytes" in str(refused.exception) and f"delete {export / DIGESTS_FILE}" in str(
        refused.exception
    )
    (export / DIGESTS_FILE).unlink()
    assert CliRunner().invoke(app, arguments).exit_code == 0


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md"])
@pytest.mark.parametrize("is_lost", [True, False])
def test_every_reader_names_a_lost_or_cut_file(export: Path, tmp_path: Path, name: str, is_lost: bool) -> None:
    if is_lost:
        (export / name).unlink()
    else:
        (export / name).write_bytes((export / name).read_bytes()[:-1])
    readers = {
        "check": lambda: check_draft(export, "hf"),
        "export": lambda: export_draft(export, "vllm", out=tmp_path / "again"),
        "init": lambda: init_from(make_draft(MadeTarget()), export),
        "vocabulary": lambda: published_vocab(export, torch.zeros(VOCAB, dtype=torch.int64)),
        "push": lambda: push_folder(export, "nobody/nothing"),
    }
    for reader, read in readers.items():
        with pytest.raises(CorruptError, match=f"{name} \\((lost|[0-9,]+ bytes, published with)"):
            pytest.fail(f"{reader} did not notice: {read()}")
    if name == "model.safetensors" and is_lost:
        with pytest.raises(CorruptError, match="lost"):
            open_init(str(export), tmp_path / "checkpoints")


def test_evaluation_and_report_of_a_run_name_a_lost_or_changed_file_of_its_draft(tmp_path: Path) -> None:
    draft = save_draft(make_draft(MadeTarget()), tmp_path / "draft")
    (draft / "config.json").write_text("{}")
    for read in (open_run, write_report):
        with pytest.raises(CorruptError, match=r"config\.json \(2 bytes"):
            read(tmp_path)
    (draft / "model.safetensors").unlink()
    with pytest.raises(CorruptError, match=r"model\.safetensors \(lost\); |model\.safetensors \(lost\), "):
        open_run(tmp_path)


def test_added_files_pass_and_those_that_readers_take_are_noted(export: Path) -> None:
    (export / "LICENSE").write_text("MIT")
    assert check_draft(export, "hf").findings == ()
    save_file({"x": torch.zeros(1)}, export / "model-00002.safetensors")
    (export / "hf_quant_config.json").write_text("{}")
    report = check_draft(export, "hf")
    assert report.ok
    assert [finding.name for finding in report.findings] == ["hf_quant_config.json", "model-00002.safetensors"]


def test_publishing_a_run_again_keeps_added_files_and_fits_its_digests(tmp_path: Path) -> None:
    folder = save_draft(make_draft(MadeTarget()), tmp_path / "draft")
    (folder / "NOTES").write_text("mine")
    (folder / "more").mkdir()
    (folder / "more" / "a").write_text("mine too")
    first = (folder / DIGESTS_FILE).read_bytes()
    save_draft(make_draft(MadeTarget(), scale=0.1), folder)
    assert (folder / "NOTES").read_text() == "mine" and (folder / "more" / "a").read_text() == "mine too"
    assert (folder / DIGESTS_FILE).read_bytes() != first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["draft"]
    check_draft(folder, "hf")


def test_folder_without_digests_is_read_as_before(export: Path) -> None:
    (export / DIGESTS_FILE).unlink()
    (export / "config.json").write_text((export / "config.json").read_text().replace("128", "256"))
    assert check_draft(export, "hf").ok
