"""Evidence on what stored last hidden states are, from a few of their rows and the target's head.

A state at token t of the right text, in the right form, gives the next token a high probability. So it shows whether
states lie before or after the final norm, and samples whose states belong to other tokens. A target that does not
predict the text, of random weights say, shows neither: then the tool's convention decides, and no sample is judged.

Shapes: R rows of a sample, V vocabulary, Ht the target's hidden size.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import log
from statistics import median

import torch

from eaglepipe.chat.faults import RowError
from eaglepipe.precompute.imported.sample import ForeignSample, LastHidden
from eaglepipe.target.head_only import HeadOnlyTarget

JUDGED_SAMPLES = 16
_MOST_ROWS = 32  # of a sample
_FEWEST_ROWS = 8
_NATS = 1.0  # above a uniform guess, from which a target is known to predict a text
_SIGMAS = 4.0
_FEWEST_SAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Log-probabilities that rows of a sample give to the token after them, and to tokens after other rows."""

    following: torch.Tensor  # float32 [R]
    others: torch.Tensor  # float32 [R]

    @property
    def mean(self) -> float:
        return float(self.following.mean())

    @property
    def gain(self) -> float:
        """Mean advantage of the token that follows."""
        return float((self.following - self.others).mean())


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The form of a folder's last hidden states, and what its samples score."""

    head: HeadOnlyTarget
    last_hidden: LastHidden
    note: str
    mean: float | None = None  # median score of the samples; None if the target does not predict them
    gain: float = 0.0

    @classmethod
    def of(cls, samples: Iterable[ForeignSample], head: HeadOnlyTarget, convention: LastHidden) -> "Judge":
        """Judge a folder by its first samples, of which one at a time is held."""
        scores: dict[LastHidden, list[Scores]] = {form: [] for form in _FORMS}
        for sample in samples:
            if len(sample.input_ids) > 1:
                for form in _FORMS:
                    scores[form].append(score(sample, head, form))
        if not scores[convention]:
            return cls(head=head, last_hidden=convention, note=_by_convention(convention, {}))
        rows = {form: torch.cat([each.following for each in of_form]) for form, of_form in scores.items()}
        means = {form: float(values.mean()) for form, values in rows.items()}
        best, uniform = max(_FORMS, key=lambda form: means[form]), -log(_vocab_size(head))
        difference = rows[best] - rows[_other(best)]
        error = float(difference.std()) / max(1, len(difference)) ** 0.5 if len(difference) > 1 else float("inf")
        predicts = means[best] > uniform + _NATS
        decided = predicts and float(difference.mean()) > max(_SIGMAS * error, 1e-3)
        form = best if decided else convention
        note = _measured(form, means) if decided else _by_convention(form, means)
        mean, gain = (median(getattr(each, name) for each in scores[form]) for name in ("mean", "gain"))
        known = mean > uniform + _NATS and gain > _NATS and len(scores[form]) >= _FEWEST_SAMPLES
        return cls(head=head, last_hidden=form, note=note, mean=mean if known else None, gain=gain)

    def form_of(self, sample: ForeignSample) -> LastHidden:
        """Return the form of a sample's last hidden states."""
        return sample.stated or self.last_hidden

    def check(self, sample: ForeignSample, where: str) -> None:
        """Raise RowError if a sample's states predict its tokens no better than any others, where all others do."""
        if self.mean is None or len(sample.input_ids) <= _FEWEST_ROWS:
            return
        own = score(sample, self.head, self.form_of(sample))
        if own.gain < self.gain / 4 and own.mean < self.mean - self.gain / 2:
            raise RowError(
                "other_tokens",
                f"{where}: its states are not those of its token ids: the tokens that follow have a mean "
                f"log-probability of {own.mean:.1f}, tokens that do not {own.mean - own.gain:.1f}; in other samples "
                f"{self.mean:.1f} and {self.mean - self.gain:.1f}",
            )


_FORMS: tuple[LastHidden, LastHidden] = ("before_norm", "after_norm")


@torch.no_grad()
def score(sample: ForeignSample, head: HeadOnlyTarget, form: LastHidden) -> Scores:
    """Score a few rows of a sample of two tokens at least."""
    assert sample.last_hidden is not None
    last = len(sample.input_ids) - 1
    rows = torch.linspace(0, last - 1, min(_MOST_ROWS, last)).long().unique()
    log_probs = head.head_logits(normed(sample.last_hidden[rows], head, form)).log_softmax(dim=-1).cpu()
    following = sample.input_ids.long()[rows + 1]
    others = following.roll(max(1, len(rows) // 2))
    return Scores(
        following=log_probs.gather(1, following[:, None])[:, 0], others=log_probs.gather(1, others[:, None])[:, 0]
    )


def normed(states: torch.Tensor, head: HeadOnlyTarget, form: LastHidden) -> torch.Tensor:
    """Return last hidden states [R, Ht] after the final norm, in the target's type and on the head's device."""
    moved = states.to(head.device, head.dtype)
    return head.final_norm(moved) if form == "before_norm" else moved


def _vocab_size(head: HeadOnlyTarget) -> int:
    return head.target.vocab_size


def _other(form: LastHidden) -> LastHidden:
    return "after_norm" if form == "before_norm" else "before_norm"


def _measured(form: LastHidden, means: dict[LastHidden, float]) -> str:
    return (
        f"last hidden states are {_words(form)}, as the tokens that follow show: mean log-probability "
        f"{means[form]:.2f}, {means[_other(form)]:.2f} otherwise"
    )


def _by_convention(form: LastHidden, means: dict[LastHidden, float]) -> str:
    why = f" ({means[form]:.2f} and {means[_other(form)]:.2f} otherwise)" if means else ""
    return (
        f"last hidden states are taken to be {_words(form)}, as the tool's convention is: the tokens that follow do "
        f"not show it{why}"
    )


def _words(form: LastHidden) -> str:
    return form.replace("_norm", " the final norm")
