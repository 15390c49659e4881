"""Every planted fault is found, in the folder of every engine that would suffer from it, and named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from eaglepipe.errors import CorruptError, DraftError
from eaglepipe.export.check.check import check_draft
from eaglepipe.export.check.findings import CheckReport
from eaglepipe.export.target_facts import read_target_facts
from eaglepipe.export.write import export_draft
from tests.export.made_drafts import DEPTH, LLAMA, VOCAB, MadeTarget, make_draft, save_draft

Config, Tensors = dict[str, Any], dict[str, torch.Tensor]
Plant = Callable[[Config, Tensors], object]
AUX = "eagle_aux_hidden_state_layer_ids"
NATIVE = ("vllm", "sglang", "hf")
ALL = (*NATIVE, "speculators")


def inner(config: Config) -> Config:
    return config.get("transformer_layer_config", config)


def prefixed(config: Config, tensors: Tensors) -> None:
    for name in [name for name in tensors if name not in ("lm_head.weight", "d2t", "t2d")]:
        tensors[f"model.{name}"] = tensors.pop(name)


def without(name: str) -> Plant:
    return lambda config, tensors: tensors.pop(name)


def ids_for_offsets(config: Config, tensors: Tensors) -> None:
    tensors["d2t"] = tensors["d2t"] + torch.arange(len(tensors["d2t"]))


def ids_alone(config: Config, tensors: Tensors) -> None:
    ids_for_offsets(config, tensors)
    tensors.pop("t2d")


def target_depth(config: Config, tensors: Tensors) -> None:
    inner(config)["num_hidden_layers"] = DEPTH


def transposed_fc(config: Config, tensors: Tensors) -> None:
    tensors["fc.weight"] = tensors["fc.weight"].T.contiguous()


def no_theta(config: Config, tensors: Tensors) -> None:
    inner(config).pop("rope_theta")
    inner(config)["rope_parameters"].pop("rope_theta")


def no_old_theta(config: Config, tensors: Tensors) -> None:
    inner(config).pop("rope_theta")


def unsorted(config: Config, tensors: Tensors) -> None:
    ids = tensors["d2t"] + torch.arange(len(tensors["d2t"]))
    ids[[3, 7]] = ids[[7, 3]]
    tensors["d2t"] = ids - torch.arange(len(ids))


def verifier_norm(config: Config, tensors: Tensors) -> None:
    tensors["verifier_norm.weight"] = torch.ones(16)


def config_is(**values: Any) -> Plant:
    return lambda config, tensors: config.update(values)


def nested_ids(*ids: int) -> Plant:
    return config_is(eagle_config={AUX: list(ids), "use_aux_hidden_state": True})


PLANTED: dict[str, tuple[tuple[str, ...], Plant, str]] = {
    "model. prefix": (("vllm", "hf"), prefixed, "model.fc.weight"),
    "missing d2t": (ALL, without("d2t"), "d2t"),
    "d2t holds ids": (ALL, ids_for_offsets, "in place of offsets"),
    "d2t holds ids, and there is no t2d": (("vllm", "sglang"), ids_alone, "in place of offsets"),
    "the target's depth": (ALL, target_depth, "num_hidden_layers"),
    "missing norm": (ALL, without("norm.weight"), "norm.weight"),
    "transposed fc": (ALL, transposed_fc, "transposed"),
    "no rope_theta": (ALL, no_theta, "rope_theta"),
    "rope_theta in one spelling": (("hf",), no_old_theta, "rope_theta"),
    "unsorted vocabulary": (ALL, unsorted, "do not ascend"),
    "extra verifier norm": (ALL, verifier_norm, "verifier_norm.weight"),
    "outputs read as boundaries": (("vllm",), config_is(**{AUX: [1, 4, 6]}), "layer outputs"),
    "boundaries in eagle_config": (("sglang",), nested_ids(2, 5, 7), "boundaries"),
    "outputs in eagle_config alone": (("vllm", "hf"), nested_ids(1, 4, 6), AUX),
    "both spellings alike": (NATIVE, lambda c, t: c.update({AUX: [3, 5, 8], "eagle_config": {AUX: [3, 5, 8]}}), AUX),
    "custom layers that SGLang ignores": (("sglang", "hf"), config_is(**{AUX: [3, 5, 8]}), "SGLang ignores"),
    "layers that do not ascend": (("vllm", "speculators"), config_is(**{AUX: [5, 3, 8]}), "ascend"),
    "another number of layers": (("vllm",), config_is(**{AUX: [3, 5]}), "num_aux_hidden_states"),
    "null target width": (("vllm",), config_is(target_hidden_size=None), "target_hidden_size"),
    "no draft_vocab_size": (("sglang",), lambda c, t: c.pop("draft_vocab_size"), "draft_vocab_size"),
    "residual norm": (("sglang",), config_is(norm_before_residual=True), "norm_before_residual"),
    "contradicting norm_before_fc": (("vllm",), config_is(eagle_config={"norm_before_fc": True}), "norm_before_fc"),
    "fc_norm in the file alone": (
        ("vllm", "sglang"), lambda c, t: t.update({"fc_norm.0.weight": torch.ones(16)}), "fc_norm.0.weight",
    ),
    "a trained fc.bias": (("vllm",), lambda c, t: t.update({"fc.bias": torch.ones(16)}), "fc.bias"),
    "tied embeddings": (("sglang",), config_is(tie_word_embeddings=True), "tie_word_embeddings"),
    "the target's layer_types": (NATIVE, config_is(layer_types=["full_attention"] * DEPTH), "layer_types"),
    "quantization of the target": (NATIVE, config_is(quantization_config={"bits": 4}), "quantization_config"),
    "another model_type": (NATIVE, config_is(model_type="qwen3"), "model_type"),
    "model_type hides the format": (("speculators",), config_is(model_type="llama"), "model_type"),
    "architecture of the target": (("sglang",), config_is(architectures=["LlamaForCausalLM"]), "architectures"),
    "not a number": (ALL, lambda c, t: t["fc.weight"].fill_(float("nan")), "NaN"),
    "t2d of another vocabulary": (
        ("speculators", "hf"), lambda c, t: t.update(t2d=t["t2d"].roll(1)), "d2t leads to",
    ),
    "integers for weights": (ALL, lambda c, t: t.update({"norm.weight": torch.ones(16, dtype=torch.int32)}), "int32"),
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("exports")
    draft = save_draft(make_draft(MadeTarget()), root / "draft")
    return {engine: export_draft(draft, engine, out=root / engine).folder for engine in ALL}  # type: ignore[arg-type]


def planted(folder: Path, into: Path, plant: Plant) -> Path:
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    plant(config, tensors)
    into.mkdir()
    (into / "config.json").write_text(json.dumps(config))
    save_file(tensors, into / "model.safetensors")
    return into


def reports(report: CheckReport, word: str) -> bool:
    return any(word in finding.line() for finding in report.errors)


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_fault_is_found_and_named(fault: str, exported: dict[str, Path], tmp_path: Path) -> None:
    engines, plant, word = PLANTED[fault]
    for engine in engines:
        folder = planted(exported[engine], tmp_path / engine, plant)
        report = check_draft(folder, engine)  # type: ignore[arg-type]
        assert not report.ok and reports(report, word), report.table()


@pytest.mark.parametrize("engine", ALL)
def test_nothing_is_found_in_what_we_export(engine: str, exported: dict[str, Path]) -> None:
    report = check_draft(exported[engine], engine)  # type: ignore[arg-type]
    assert report.ok and not [f for f in report.findings if f.name != "speculators_config.verifier.name_or_path"]


def test_prefix_that_sglang_and_speculators_accept_is_no_fault_there(exported: dict[str, Path], tmp_path: Path) -> None:
    for engine in ("sglang", "speculators"):
        assert check_draft(planted(exported[engine], tmp_path / engine, prefixed), engine).ok  # type: ignore[arg-type]


def test_target_sharpens_the_check(exported: dict[str, Path], tmp_path: Path) -> None:
    def check(plant: Plant, name: str, **target: Any) -> CheckReport:
        folder = planted(exported["vllm"], tmp_path / name, plant)
        (folder / "target.json").write_text(json.dumps({**LLAMA, **target}))
        return check_draft(folder, "vllm", read_target_facts(folder / "target.json"))

    assert check(config_is(), "right").ok
    assert reports(check(config_is(), "padded", vocab_size=VOCAB + 64), "vocab_size")
    assert reports(check(config_is(), "wider", hidden_size=32), "target_hidden_size")
    assert reports(check(config_is(**{AUX: [2, 5, DEPTH + 1]}), "deep"), "leave the target")


def test_every_mistake_is_listed_at_once(exported: dict[str, Path], tmp_path: Path) -> None:
    def many(config: Config, tensors: Tensors) -> None:
        for plant in (without("norm.weight"), transposed_fc, target_depth, verifier_norm, no_theta):
            plant(config, tensors)

    report = check_draft(planted(exported["vllm"], tmp_path / "many", many), "vllm")
    names = {finding.name for finding in report.errors}
    assert names == {"norm.weight", "fc.weight", "num_hidden_layers", "verifier_norm.weight", "rope_theta"}
    assert json.loads(json.dumps(report.to_json()))["ok"] is False


def test_published_head_in_a_pickle_is_read_as_tensors_alone(exported: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(exported["vllm"] / "model.safetensors")
    (tmp_path / "config.json").write_bytes((exported["vllm"] / "config.json").read_bytes())
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert check_draft(tmp_path, "vllm").ok
    assert reports(check_draft(tmp_path, "speculators"), "model.safetensors")


class Bomb:
    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> Any:
        return (Path.touch, (self.touched,))


def test_code_in_a_pickle_is_refused_and_not_run(exported: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((exported["vllm"] / "config.json").read_bytes())
    torch.save({"fc.weight": Bomb(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CorruptError, match="nothing else is loaded"):
        check_draft(tmp_path, "vllm")
    assert not (tmp_path / "ran").exists()


def test_damaged_or_absent_files_are_told_from_misfits(exported: dict[str, Path], tmp_path: Path) -> None:
    folder = planted(exported["vllm"], tmp_path / "torn", config_is())
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CorruptError, match=r"model\.safetensors"):
        check_draft(folder, "vllm")
    weights.unlink()
    with pytest.raises(DraftError, match="no weights"):
        check_draft(folder, "vllm")
    (folder / "config.json").write_text("{")
    with pytest.raises(DraftError, match="no weights"):
        check_draft(folder, "vllm")
    with pytest.raises(DraftError, match="not a draft folder"):
        check_draft(tmp_path / "nowhere", "vllm")


def test_index_of_shards_cannot_leave_the_folder(exported: dict[str, Path], tmp_path: Path) -> None:
    folder = planted(exported["vllm"], tmp_path / "sharded", config_is())
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"fc.weight": "part.safetensors"}}))
    assert check_draft(folder, "vllm").ok and not check_draft(folder, "speculators").ok
    index.write_text(json.dumps({"weight_map": {"fc.weight": "../part.safetensors"}}))
    with pytest.raises(CorruptError, match="not the name of a file"):
        check_draft(folder, "vllm")
