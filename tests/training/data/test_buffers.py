import torch

from eaglepipe.training.data.buffers import BufferPool

LARGE = (64, 2**12)


def address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def test_dropped_buffer_is_lent_again() -> None:
    pool = BufferPool()
    first = pool.take(LARGE, torch.uint8)
    place = address(first)
    del first
    assert address(pool.take(LARGE, torch.uint8)) == place


def test_buffer_is_not_lent_while_any_view_of_it_is_held() -> None:
    pool = BufferPool()
    first = pool.take(LARGE, torch.uint8)
    first[:] = 7
    view = first[3].view(torch.bfloat16)
    held = view.clone()
    del first
    second = pool.take(LARGE, torch.uint8)
    second[:] = 9
    assert torch.equal(view, held)


def test_buffer_kept_by_the_graph_is_not_lent_before_its_backward() -> None:
    pool = BufferPool()
    states = pool.take(LARGE, torch.float32)
    states[:] = 2.0
    weight = torch.ones(LARGE[1], requires_grad=True)
    loss = (states @ weight).sum()
    del states
    pool.take(LARGE, torch.float32)[:] = 5.0
    loss.backward()
    assert weight.grad is not None and torch.equal(weight.grad, torch.full((LARGE[1],), 2.0 * LARGE[0]))


def test_smaller_and_larger_needs_share_the_blocks_that_there_are() -> None:
    pool = BufferPool()
    places = set()
    for rows in (64, 32, 48, 64, 17):
        tensor = pool.take((rows, 2**12), torch.uint8)
        assert tensor.shape == (rows, 2**12)
        places.add(address(tensor))
        del tensor
    assert len(places) == 1


def test_need_a_little_larger_than_the_ones_before_is_met_by_the_same_block() -> None:
    pool = BufferPool()
    first = pool.take((64, 2**12), torch.uint8)
    place = address(first)
    del first
    assert address(pool.take((70, 2**12), torch.uint8)) == place
