import pytest
import torch

from eaglepipe.eagle.kernels.frozen_head import frozen_head_loss, head_argmax
from eaglepipe.eagle.kernels.noise import uniform_noise
from eaglepipe.target_head import HeadSpec, TargetHead


def head(**numbers: float) -> TargetHead:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(19, 6, generator=generator), torch.randn(19, generator=generator)
    return TargetHead(weight=weight, bias=bias, spec=HeadSpec(**numbers))


def plain_logits(of: TargetHead, hidden: torch.Tensor) -> torch.Tensor:
    raw = of.spec.logit_scale * (hidden @ of.weight.T + of.bias)
    return raw if of.spec.soft_cap is None else of.spec.soft_cap * torch.tanh(raw / of.spec.soft_cap)


@pytest.mark.parametrize("chunk_rows", [1, 3, 64])
@pytest.mark.parametrize("numbers", [{}, {"logit_scale": 0.3, "soft_cap": 2.0}], ids=["plain", "capped"])
def test_loss_and_gradient_are_the_plain_ones_in_chunks_of_any_size(chunk_rows: int, numbers: dict[str, float]) -> None:
    of, target = head(**numbers), torch.randn(7, 6)
    hidden = torch.randn(7, 6, requires_grad=True)
    found = frozen_head_loss(hidden, target, of, chunk_rows=chunk_rows)
    expected = -(plain_logits(of, target).softmax(-1) * plain_logits(of, hidden).log_softmax(-1)).sum()
    torch.testing.assert_close(found.loss_sum, expected)
    (mine,) = torch.autograd.grad(0.25 * found.loss_sum, hidden)
    (plain,) = torch.autograd.grad(0.25 * expected, hidden)
    torch.testing.assert_close(mine, plain)
    assert torch.equal(found.predicted, plain_logits(of, hidden).argmax(-1))
    assert torch.equal(found.target_top1, plain_logits(of, target).argmax(-1))
    assert torch.equal(head_argmax(target, of, chunk_rows), found.target_top1)


def test_no_rows_are_no_loss() -> None:
    hidden = torch.randn(0, 6, requires_grad=True)
    found = frozen_head_loss(hidden, torch.randn(0, 6), head(), chunk_rows=4)
    found.loss_sum.backward()
    assert float(found.loss_sum.detach()) == 0.0 and len(found.predicted) == 0


def test_noise_is_uniform_independent_by_channel_and_a_function_of_its_seed() -> None:
    seeds = torch.randint(2**32, (4000,), generator=torch.Generator().manual_seed(1))
    noise = uniform_noise(seeds, 8, 0.1)
    assert noise.dtype == torch.float32 and float(noise.abs().max()) <= 0.1
    counts = torch.histc(noise, bins=10, min=-0.1, max=0.1)
    assert float((counts / counts.sum() - 0.1).abs().max()) < 0.01
    assert float((torch.corrcoef(noise.T) - torch.eye(8)).abs().max()) < 0.06
    assert torch.equal(uniform_noise(seeds[1000:1010], 8, 0.1), noise[1000:1010])
    assert torch.equal(uniform_noise(seeds[:4].reshape(2, 2), 8, 0.1), noise[:4].reshape(2, 2, 8))
