from pathlib import Path

import pytest
import torch

from eaglepipe.bench.peers.batches import decoded_layouts, shortest_packed_rows, unpadded_rows
from eaglepipe.bench.peers.eagle3_peers import EAGLE3_PEERS
from eaglepipe.bench.peers.packages import PeerPackage
from eaglepipe.bench.peers.specforge_eagle3 import whole_head
from eaglepipe.bench.step_paths import StepPath, StepSetup, packed_rows
from eaglepipe.bench.step_presets import Workload
from tests.bench.tiny_bench import CHAT, FULL, PRESET, SHAPE


def path_of(folder: Path, workload: Workload) -> StepPath:
    cache = workload.write_cache(folder, SHAPE)
    return StepPath(StepSetup(preset=PRESET, workload=workload, cache=cache, device=torch.device("cpu")), "compact")


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> StepPath:
    return path_of(tmp_path_factory.mktemp("chat"), CHAT)


def test_rows_of_a_sample_share_a_batch_only_if_equally_long(chat: StepPath, tmp_path: Path) -> None:
    assert CHAT.lengths == (33, 12, 20, 41)
    assert unpadded_rows(chat.setup) == (((0,),), ((1,),), ((2,),), ((3,),))
    assert unpadded_rows(path_of(tmp_path, FULL).setup) == (((0,), (1,)),)


def test_short_rows_keep_the_order_and_the_longest_document_bounds_them(chat: StepPath) -> None:
    assert shortest_packed_rows(chat.setup) == (((0,),), ((1, 2),), ((3,),))  # 33, 12 + 20 and 41 of 41


def test_layouts_hold_every_token_and_equal_ones_are_decoded_once(chat: StepPath) -> None:
    layout = shortest_packed_rows(chat.setup)
    layouts = decoded_layouts(chat, {"packed": packed_rows(chat.setup), "short": layout, "again": layout})
    assert list(layouts) == ["packed", "short"]
    states = {}
    for name, batches in layouts.items():
        assert sum(int(batch.packed.attention_mask.sum()) for batch in batches) == sum(CHAT.lengths)
        rows = [batch.last_hidden[batch.packed.position_mask] for batch in batches]
        states[name] = sorted(map(tuple, torch.cat(rows).tolist()))
        assert all((batch.last_hidden[~batch.packed.position_mask] == 0).all() for batch in batches)
    assert states["packed"] == states["short"]


def test_whole_head_has_the_draft_vocabulary_where_the_target_has_it(chat: StepPath) -> None:
    head, cache = whole_head(chat), chat.setup.cache
    assert head.shape == (SHAPE.vocab_size, SHAPE.hidden_size)
    assert torch.equal(head[cache.vocab.selected_token_mask], cache.start_tensors()["lm_head.weight"].float())
    assert (head[~cache.vocab.selected_token_mask] == 0).all()


@pytest.mark.parametrize("package", EAGLE3_PEERS, ids=lambda package: package.module)
@pytest.mark.parametrize("workload", [CHAT, FULL], ids=lambda workload: workload.name)
def test_installed_peer_has_the_loss_of_each_step(package: PeerPackage, workload: Workload, tmp_path: Path) -> None:
    if not package.is_installed:
        pytest.skip(f"{package.pip_name} is not installed")
    path = path_of(tmp_path, workload)
    _, losses = EAGLE3_PEERS[package](path).run_all()
    torch.testing.assert_close(losses, path.run_decoded()[1], rtol=1e-5, atol=0)
