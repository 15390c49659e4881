"""The losses of block drafts against loops over positions."""

import math
from dataclasses import replace

import pytest
import torch

from eaglepipe.eagle.dflash.losses import DSPARK_LOSS, BlockLoss, BlockTargets, block_loss, dpace_weights

N, B, D = 5, 4, 7
SETTINGS = {
    "ce": BlockLoss(),
    "kl": BlockLoss(ce=0.0, kl=1.0, gamma=2.0),
    "tv": BlockLoss(ce=0.0, tv=1.0),
    "sum": BlockLoss(ce=0.25, kl=0.5, tv=0.75, sample_from_anchor=True),
    "dpace": BlockLoss(weights="dpace", dpace_alpha=0.3),
    "dpace, anchor": BlockLoss(weights="dpace", sample_from_anchor=True),
    "dspark": DSPARK_LOSS,
}


def made() -> tuple[torch.Tensor, BlockTargets, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(N, B, D, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([4, 3, 1, 0, 4])
    labels = torch.randint(D, (N, B), generator=generator)
    labels[4, 2] = -1
    targets = BlockTargets(
        mask=torch.arange(B) < lengths[:, None],
        labels=labels,
        probs=torch.randn(N, B, D, generator=generator).softmax(dim=-1),
        draft_mass=torch.rand(N, B, generator=generator),
    )
    return logits.float(), targets, torch.randn(N, B, generator=generator)


def looped(settings: BlockLoss, logits: torch.Tensor, targets: BlockTargets, forecast: torch.Tensor) -> torch.Tensor:
    """The loss sum, the sum of weights and the positions, position by position in float64."""
    loss, weight_sum, count = torch.zeros((), dtype=torch.float64), 0.0, 0
    first = 0 if settings.sample_from_anchor else 1
    for n in range(N):
        positions = [k for k in range(first, B) if targets.mask[n, k]]
        q = {k: logits[n, k].double().softmax(dim=-1) for k in positions}
        for k in positions:
            label, p = int(targets.labels[n, k]), targets.probs[n, k].double()
            fixed = math.exp(-(k - first) / settings.gamma)
            weight = fixed
            if settings.weights == "dpace":
                chances = [
                    (1 - settings.dpace_alpha) * (q[i][targets.labels[n, i]].item() if targets.labels[n, i] >= 0 else 0)
                    + settings.dpace_alpha
                    for i in positions
                ]
                weight = sum(math.prod(chances[: j + 1]) for j in range(positions.index(k), len(positions)))
            overlap = torch.minimum(q[k], targets.draft_mass[n, k].double() * p).sum()
            term = settings.ce * (-q[k][label].log() if label >= 0 else 0) + settings.tv * (1 - overlap)
            loss = loss + weight * (term + settings.kl * (p * (p / q[k]).log()).sum())
            chance, goal = forecast[n, k].double().sigmoid(), overlap.detach()
            error = -(goal * chance.log() + (1 - goal) * (1 - chance).log())
            loss = loss + settings.confidence * fixed * error
            weight_sum += weight
            count += 1
    return torch.stack((loss, torch.tensor(weight_sum).double(), torch.tensor(count).double()))


@pytest.mark.parametrize("name", SETTINGS)
def test_loss_equals_a_loop_over_positions_in_value_and_gradient(name: str) -> None:
    settings, (logits, targets, forecast) = SETTINGS[name], made()
    logits.requires_grad_()
    forecast.requires_grad_()
    sums = block_loss(settings, logits, targets, forecast if settings.confidence else None)
    expected = looped(settings, logits, targets, forecast)
    found = torch.stack((sums.loss.double(), sums.weights.double(), sums.num_positions.double()))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    inputs = (logits, forecast) if settings.confidence else (logits,)
    gradients, wanted = torch.autograd.grad(sums.loss, inputs), torch.autograd.grad(expected[0], inputs)
    for gradient, goal in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, goal, rtol=1e-4, atol=1e-6)


def test_positions_outside_the_mask_and_the_anchor_without_a_loss_change_nothing() -> None:
    settings, (logits, targets, forecast) = replace(DSPARK_LOSS, sample_from_anchor=False), made()
    loss = block_loss(settings, logits, targets, forecast).loss
    idle = ~targets.mask
    idle[:, 0] = True
    noisy = torch.where(idle[..., None], 9 * torch.randn_like(logits), logits)
    other = block_loss(settings, noisy, targets, torch.where(idle, forecast + 1, forecast)).loss
    torch.testing.assert_close(loss, other, rtol=0, atol=0)


def test_dspark_weighs_the_whole_distance_by_nine_tenths() -> None:
    logits, targets, _ = made()
    whole = replace(targets, draft_mass=None)
    alphas = block_loss(DSPARK_LOSS, logits, whole, torch.zeros(N, B)).alphas
    distance = (logits.softmax(dim=-1) - whole.probs).abs().sum(dim=-1)
    torch.testing.assert_close(DSPARK_LOSS.tv * (1 - alphas), 0.9 * distance)


def test_sure_guesses_weigh_by_the_positions_that_follow() -> None:
    mask = torch.tensor([[True, True, True, False]])
    weights = dpace_weights(torch.zeros(1, 4), mask, mask, 0.5)
    assert weights.tolist() == [[3.0, 2.0, 1.0, 0.0]]
