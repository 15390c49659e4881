"""Draft folders of others: whatever is in them, every reader ends with one line and exit code 2 or 3."""

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from eaglepipe.drafts.init_from import init_from
from eaglepipe.drafts.init_record import open_init
from eaglepipe.errors import CorruptError, DraftError, EaglepipeError
from eaglepipe.export.check.check import check_draft
from eaglepipe.export.layouts import ENGINES, Engine
from eaglepipe.export.target_facts import read_target_facts
from eaglepipe.export.write import export_draft
from tests.export.made_drafts import LLAMA, MadeTarget, make_draft, save_draft, without_digests

Readers = dict[str, Callable[[], object]]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[Engine, Path]:
    root = tmp_path_factory.mktemp("exports")
    draft = save_draft(make_draft(MadeTarget()), root / "draft")
    return {engine: without_digests(export_draft(draft, engine, out=root / engine).folder) for engine in ENGINES}


@pytest.fixture
def folder(exports: dict[Engine, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(exports["hf"], tmp_path / "foreign"))


def readers(folder: Path) -> Readers:
    return {
        "check": lambda: check_draft(folder, "vllm"),
        "export": lambda: export_draft(folder, "vllm", out=folder.with_name("out")),
        "init": lambda: init_from(make_draft(MadeTarget()), folder),
    }


def refusals(folder: Path) -> dict[str, EaglepipeError]:
    """The error of each reader, all of them in one line."""
    errors = {}
    for reader, read in readers(folder).items():
        with pytest.raises(EaglepipeError) as caught:
            read()
        assert "\n" not in str(caught.value) and caught.value.exit_code in (2, 3), f"{reader}: {caught.value}"
        errors[reader] = caught.value
    return errors


WRONG: list[tuple[str, Any]] = [
    *(("hidden_size", value) for value in ("16", -16, 0, 16.0, [16], 2**40, True)),
    *(("num_hidden_layers", value) for value in ("1", 2**40, -1, {})),
    *(("num_aux_hidden_states", value) for value in (2**40, "3", [])),
    *(("rope_theta", value) for value in ("1e4", -1, float("nan"), 10**400, [])),
    *(("rope_parameters", value) for value in ("x", 3, [None], {"rope_theta": "x"}, {"rope_type": {}})),
    *(("rope_scaling", value) for value in (2**63, [1], {"factor": float("inf")}, {"type": "\ud800"})),
    *(("eagle_config", value) for value in ("x", [], {"norm_before_fc": "no"})),
    *(("architectures", value) for value in ("LlamaForCausalLMEagle3", 3, [[1]], [None], ["\ud800"])),
    *(("tie_word_embeddings", value) for value in ("false", 0, [])),
    *(("torch_dtype", value) for value in (16, ["bfloat16"], {})),
    *(("layer_types", value) for value in (1, "full_attention", [1])),
    *(("eos_token_id", value) for value in ("2", [2, "3"], 0.5, 2**40)),
]


@pytest.mark.parametrize(("field", "value"), WRONG, ids=[f"{field}-{str(value)[:9]!a}" for field, value in WRONG])
def test_config_field_of_another_type_is_named(folder: Path, field: str, value: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, field: value}))
    for error in refusals(folder).values():
        assert f"{field}" in str(error) and "config.json" in str(error) and len(str(error)) < 600


def test_nested_fields_and_every_wrong_one_are_named_at_once(exports: dict[Engine, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exports["speculators"], tmp_path / "foreign"))
    config = json.loads((folder / "config.json").read_text())
    config["speculators_config"]["verifier"] = {"name_or_path": 3, "architectures": "x"}
    config["transformer_layer_config"]["head_dim"] = "4"
    (folder / "config.json").write_text(json.dumps(config))
    for error in refusals(folder).values():
        for name in (
            "speculators_config.verifier.name_or_path is 3",
            "verifier.architectures is 'x'",
            "transformer_layer_config.head_dim is '4', not a whole number",
        ):
            assert name in str(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable JSON"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{"hidden_size": 16, // comment\n}', "not a readable JSON"),
        (b"{'hidden_size': 16}", "not a readable JSON"),
        ("{}".encode("utf-16"), "not a readable JSON"),
        (b"[" * 100_000, "not a readable JSON"),
        (b"[]", "this is a list"),
        (b"null", "this is a NoneType"),
        (b"{}", "the config has no hidden_size"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", "not a readable JSON"),
    ],
)
def test_config_of_any_other_content_is_refused(folder: Path, content: bytes, message: str) -> None:
    (folder / "config.json").write_bytes(content)
    for error in refusals(folder).values():
        assert message in str(error)


def test_config_with_other_line_ends_and_fields_of_its_own_is_read(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"transformers_version": "4.41.0", "_name_or_path": "/home/a", "use_cache": True, "torch_dtype": None}
    (folder / "config.json").write_bytes(json.dumps(config, indent=2).replace("\n", "\r\n").encode())
    report = check_draft(folder, "hf")
    assert report.ok and any("_name_or_path" in finding.message for finding in report.findings)
    init_from(make_draft(MadeTarget()), folder)


class Bomb:
    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> Any:
        return (Path.touch, (self.touched,))


def pickles(ran: Path) -> dict[str, bytes]:
    """What is found under the names of pickles, none of which a reader may take."""

    def saved(value: object, **options: Any) -> bytes:
        stream = io.BytesIO()
        torch.save(value, stream, **options)
        return stream.getvalue()

    weights = {"fc.weight": torch.ones(2, 2)}
    return {
        "plain": pickle.dumps(weights),
        "plain, code": pickle.dumps(Bomb(ran)),
        "protocol 0": f"cpathlib\nPath\n(S'{ran}'\ntR.".encode(),
        "legacy": saved(weights, _use_new_zipfile_serialization=False),
        "archive, code": saved({"fc.weight": Bomb(ran)}),
        "archive, nested": saved({"state_dict": weights}),
        "archive, a module": saved(torch.nn.Linear(2, 2)),
        "archive, no storage": saved({"fc.weight": torch.ones(1).expand(2**40)}),
        "archive, sparse": saved({"fc.weight": torch.ones(2, 2).to_sparse()}),
        "archive, empty": saved({}),
        "archive, cut": saved(weights)[:-40],
        "zip": b"PK\x05\x06" + bytes(18),
        "nothing": b"",
    }


@pytest.mark.parametrize("kind", pickles(Path("ran")))
def test_pickle_is_refused_in_our_words_and_never_run(folder: Path, tmp_path: Path, kind: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickles(tmp_path / "ran")[kind])
    for error in refusals(folder).values():
        assert "pytorch_model.bin" in str(error) and "convert them once in a place you trust" in str(error)
        assert "weights_only" in str(error) and "Weights only load failed" not in str(error)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["model.pt", "model.pth", "epoch.ckpt", "draft.pkl", "model.PT", "pytorch_model-00001-of-00002.bin"]
)
def test_pickle_of_another_name_is_named_alone_and_noted_beside_weights(
    folder: Path, tmp_path: Path, name: str
) -> None:
    (folder / name).write_bytes(pickles(tmp_path / "ran")["archive, code"])
    (folder / "optimizer.pt").write_bytes(pickles(tmp_path / "ran")["plain, code"])
    report = check_draft(folder, "hf")
    assert report.ok and {finding.name for finding in report.findings} == {name, "optimizer.pt"}
    init_from(make_draft(MadeTarget()), folder)
    (folder / "model.safetensors").unlink()
    for error in refusals(folder).values():
        assert isinstance(error, DraftError) and "only pickled weights" in str(error) and name in str(error)
    with pytest.raises(DraftError, match="only pickled weights"):
        open_init(str(folder), tmp_path / "checkpoints")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["plain, code", "archive, code"])
def test_pickle_under_the_name_of_safetensors_is_told_from_damage(folder: Path, tmp_path: Path, kind: str) -> None:
    (folder / "model.safetensors").write_bytes(pickles(tmp_path / "ran")[kind])
    for error in refusals(folder).values():
        assert isinstance(error, CorruptError) and "a pickle under the name" in str(error)
    assert not (tmp_path / "ran").exists()


def header(fields: dict[str, Any], length: int | None = None) -> bytes:
    data = json.dumps(fields).encode()
    return (len(data) if length is None else length).to_bytes(8, "little") + data


WEIGHTS: dict[str, bytes] = {
    "empty": b"",
    "length alone": bytes(8),
    "length beyond the file": header({}, 2**40),
    "longest length": header({}, 2**64 - 1),
    "no JSON": (4).to_bytes(8, "little") + b"nope",
    "header of 2^40 elements": header({"fc.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
    "offsets that overlap": header({
        name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in ("a", "b")
    }) + bytes(4),
    "negative offsets": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}),
    "unknown dtype": header({"a": {"dtype": "F3", "shape": [1], "data_offsets": [0, 4]}}) + bytes(4),
    "page of an error": b"<html><body>503 Service Unavailable</body></html>",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
}  # fmt: skip


def test_pointer_of_git_lfs_is_told_from_damage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(WEIGHTS["pointer"])
    for error in refusals(folder).values():
        assert "run `git lfs pull`" in str(error)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_of_any_other_content_are_damage(folder: Path, kind: str) -> None:
    (folder / "model.safetensors").write_bytes(WEIGHTS[kind])
    for error in refusals(folder).values():
        assert isinstance(error, CorruptError) and "model.safetensors" in str(error)


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"weight_map": []},
        {"weight_map": {"a": 3}},
        {"weight_map": {"a": "../hf/model.safetensors"}},
        {"weight_map": {"a": "/etc/passwd"}},
        {"weight_map": {"a": "absent.safetensors"}},
        {"weight_map": {"a": ".."}},
        {"weight_map": {"a": "\ud800"}},
        {"weight_map": {"a": "\x00"}},
        {"weight_map": {"a": "x" * 5000}},
    ],
)
def test_index_of_absent_or_outside_files_is_damage(folder: Path, index: dict[str, Any]) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for error in refusals(folder).values():
        assert isinstance(error, CorruptError) or "file name too long" in str(error)


@pytest.mark.parametrize(
    "name", [f"layers.{2**40}.mlp.up_proj.weight", "model.layers.1000.x", f"layers.{'9' * 5000}.x"]
)
def test_tensor_of_a_layer_that_no_draft_has_is_refused_at_once(folder: Path, name: str) -> None:
    save_file({**load_file(folder / "model.safetensors"), name: torch.ones(1)}, folder / "model.safetensors")
    for error in refusals(folder).values():
        assert "is no name of a draft's tensor" in str(error)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn, torch.complex64, torch.uint8], ids=str)
def test_weights_that_are_no_floats_are_never_taken(folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name in ("midlayer.self_attn.q_proj.weight", "fc.weight"):
        tensors[name] = torch.ones(tensors[name].shape).to(dtype)
    save_file(tensors, folder / "model.safetensors")
    assert {"fc.weight", "midlayer.self_attn.q_proj.weight"} <= {f.name for f in check_draft(folder, "vllm").errors}
    for reader in ("export", "init"):
        with pytest.raises(DraftError, match=r"fc\.weight is stored as"):
            readers(folder)[reader]()


def test_what_is_no_file_is_never_waited_for(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    refusals(folder)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("d2t", torch.complex64),
        ("d2t", torch.float8_e4m3fn),
        ("t2d", torch.float16),
        ("layers.1.input_layernorm.weight", torch.float8_e5m2),
        ("fc.bias", torch.float8_e4m3fn),
    ],
)
def test_values_that_cannot_be_compared_are_reported_by_their_dtype(
    folder: Path, name: str, dtype: torch.dtype
) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors |= {f"layers.1.{norm}.weight": torch.ones(16) for norm in ("input_layernorm", "hidden_norm")}
    tensors[name] = tensors.get(name, torch.ones(16)).to(dtype)
    save_file(tensors, folder / "model.safetensors")
    for engine in ENGINES:
        assert not check_draft(folder, engine).ok


@pytest.mark.parametrize("field", ["max_position_embeddings", "rms_norm_eps"])
def test_config_without_a_field_that_engines_need_is_not_exported(folder: Path, field: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config[field]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DraftError, match=f"no {field}; add"):
        export_draft(folder, "vllm")


@pytest.mark.parametrize(
    "fields",
    [{"num_hidden_layers": "10"}, {"vocab_size": [64]}, {"rope_scaling": 3}, {"hidden_size": 2**40}, {"model_type": 3}],
)
def test_target_with_fields_of_other_types_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **fields}))
    with pytest.raises(DraftError, match=f"{next(iter(fields))} is .*, not ") as caught:
        read_target_facts(tmp_path)
    assert "\n" not in str(caught.value)
