import numpy as np
import torch

from eaglepipe.cache.codecs.catalog import EncodedRows, make_codec
from eaglepipe.cache.types import CachedSample
from eaglepipe.eagle.packed_batch import count_slots
from eaglepipe.training.data.batch import BatchColumns
from eaglepipe.training.data.collate import encode_batch, pack_documents


def document(name: str, ids: list[int], supervised: list[int], covered: list[int] | None = None) -> CachedSample:
    """Aux rows hold 10·id, supervision rows hold id, so that a row's origin can be read off."""
    mask = np.array(supervised, bool)
    tokens = np.array(ids, np.float32)
    return CachedSample(
        sample_id=name,
        source="hand",
        input_ids=np.array(ids, np.int32),
        loss_mask=mask,
        supervised=mask,
        position_mask=mask if covered is None else np.array(covered, bool),
        target_top1=np.where(mask, 1, -1).astype(np.int32),
        draft_mass=mask.astype(np.float32),
        aux_payload=(10 * tokens)[:, None].view(np.uint8),
        aux_scales=None,
        supervision={"target_probs": tokens[mask][:, None].view(np.uint8)},
    )


def payload(rows: tuple[tuple[CachedSample, ...], ...], **reads: str) -> tuple[torch.Tensor, torch.Tensor]:
    packed = pack_documents(rows)
    batch = encode_batch(packed, pinned=False, run=lambda copy: copy(), columns=BatchColumns(**reads))
    codec = make_codec("fp32", (1,))
    aux = codec.decode(EncodedRows(payload=batch.aux_payload)).reshape(packed.batch.shape)
    return aux, codec.decode(EncodedRows(payload=batch.supervision["target_probs"])).flatten()


# question q, answer a, end of turn e; two turns: q q a e q a a e, as ids
TWO_TURNS = [1, 2, 3, 9, 4, 5, 6, 9]
# a row is supervised when it and the next one are the same answer's: 3->9, 5->6, 6->9
SUPERVISED = [0, 0, 1, 0, 0, 1, 1, 0]


def test_two_turn_conversation_token_by_token() -> None:
    batch = pack_documents(((document("chat", TWO_TURNS, SUPERVISED, [0, 0, 1, 0, 0, 0, 1, 0]),),)).batch
    assert batch.input_ids.tolist() == [[2, 3, 9, 4, 5, 6, 9, 0]]
    assert batch.loss_mask.tolist() == [[False, True, False, False, True, True, False, False]]
    assert batch.position_mask.tolist() == [[False, True, False, False, False, True, False, False]]
    assert batch.attention_mask.tolist() == [[True] * 8]
    assert batch.position_ids.tolist() == [list(range(8))]
    assert batch.doc_remaining.tolist() == [[7, 6, 5, 4, 3, 2, 1, 0]]
    assert batch.seq_lens.tolist() == [[8]]


def test_supervision_travels_for_covered_slots_alone_and_in_slot_order() -> None:
    chat = document("chat", TWO_TURNS, SUPERVISED, [0, 0, 1, 0, 0, 0, 1, 0])
    aux, rows = payload(((chat,),))
    assert aux.tolist() == [[10 * token for token in TWO_TURNS]]  # not shifted
    assert rows.tolist() == [3, 6]  # of the rows that predict 9 after 3 and 9 after 6
    assert payload(((chat,),), supervision="supervised")[1].tolist() == [3, 5, 6]


def test_packed_rows_restart_positions_and_fold_padding_into_the_last_document() -> None:
    a, b = document("a", [1, 2, 3], [0, 1, 0]), document("b", [4, 5], [1, 0])
    c = document("c", [6, 7, 8], [0, 1, 0])
    batch = pack_documents(((a, b), (c,))).batch
    assert batch.input_ids.tolist() == [[2, 3, 4, 5, 0], [7, 8, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 0, 0]]
    assert batch.seq_lens.tolist() == [[3, 2], [5, 0]]
    assert batch.doc_remaining.tolist() == [[2, 1, 0, 1, 0], [2, 1, 0, 0, 0]]
    assert batch.attention_mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    aux, rows = payload(((a, b), (c,)))
    assert aux.tolist() == [[10, 20, 30, 40, 50], [60, 70, 80, 0, 0]]
    assert rows.tolist() == [2, 7]  # b's first row lies before every slot of b


def test_no_slot_is_supervised_by_the_document_after_it() -> None:
    a, b = document("a", [1, 2], [1, 0]), document("b", [3, 4], [1, 0])
    batch = pack_documents(((a, b),)).batch
    assert not batch.loss_mask.any() and not batch.position_mask.any()


def test_worked_example_of_two_packed_documents_counts_twelve_slots() -> None:
    four = [document(name, [1, 2, 3, 4], [1, 1, 1, 1]) for name in ("a", "b")]
    packed = pack_documents(((four[0], four[1]),)).batch
    counts = count_slots(packed.covered_steps(4))
    assert counts.tolist() == [6, 4, 2, 0]


def test_packed_documents_count_what_they_count_alone() -> None:
    chats = [document("a", TWO_TURNS, SUPERVISED), document("b", [1, 2, 3, 4], [0, 1, 1, 0])]
    alone = pack_documents(tuple((chat,) for chat in chats)).batch
    packed = pack_documents((tuple(chats),)).batch
    expected = count_slots(alone.covered_steps(5))
    assert count_slots(packed.covered_steps(5)).tolist() == expected.tolist()
