import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from eaglepipe.errors import TargetError
from eaglepipe.target.fingerprint import target_weight_files, weights_fingerprint
from tests.target.tiny_targets import CONFIGS, save_target


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return save_target(CONFIGS["llama"], tmp_path_factory.mktemp("single"))


@pytest.fixture
def sharded(tmp_path):
    return save_target(CONFIGS["llama"], tmp_path / "sharded", max_shard_size="60KB")


def rewrite(folder, change, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    return weights_fingerprint(tmp_path)


def test_sharded_and_single_layouts_agree(single, sharded):
    assert len(target_weight_files(sharded)) > 2
    assert weights_fingerprint(single) == weights_fingerprint(sharded)


def test_file_metadata_and_tensor_order_do_not_matter(single, tmp_path):
    tensors = load_file(single / "model.safetensors")
    save_file(
        dict(reversed(tensors.items())), tmp_path / "model.safetensors", metadata={"format": "pt", "note": "x" * 99}
    )
    assert weights_fingerprint(tmp_path) == weights_fingerprint(single)


def test_one_changed_number_changes_it(single, tmp_path):
    def nudge(tensors):
        tensors["model.norm.weight"][3] += 1e-3

    assert rewrite(single, nudge, tmp_path) != weights_fingerprint(single)


def test_a_rename_a_dtype_and_a_shape_change_it(single, tmp_path):
    def rename(tensors):
        tensors["model.norm.scale"] = tensors.pop("model.norm.weight")

    def retype(tensors):
        tensors["model.norm.weight"] = tensors["model.norm.weight"].view(torch.int32)

    def reshape(tensors):
        tensors["model.norm.weight"] = tensors["model.norm.weight"].reshape(4, -1)

    prints = [rewrite(single, change, tmp_path) for change in (rename, retype, reshape)]
    assert len({*prints, weights_fingerprint(single)}) == 4


def test_a_truncated_file_is_named(single, tmp_path):
    data = (single / "model.safetensors").read_bytes()
    for size in (0, 5, 40, len(data) - 1):
        (tmp_path / "model.safetensors").write_bytes(data[:size])
        with pytest.raises(TargetError, match=r"model\.safetensors"):
            weights_fingerprint(tmp_path)


def test_a_missing_shard_is_named(sharded):
    target_weight_files(sharded)[1].unlink()
    with pytest.raises(TargetError, match="weights missing: model-00002"):
        weights_fingerprint(sharded)


def test_an_index_cannot_point_outside_the_folder(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(TargetError, match="secret"):
        weights_fingerprint(tmp_path)


def test_pickled_weights_are_refused_with_the_way_to_convert(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(TargetError, match=r"pickled weights .*save_pretrained"):
        weights_fingerprint(tmp_path)
