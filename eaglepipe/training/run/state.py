"""The state that a run carries between its steps and processes; to JSON and back without loss."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from eaglepipe.files.hashing import canonical_json
from eaglepipe.training.data.batch import DataPosition


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Rates of a draft on the held-out samples, by depth; counts are added up before they are divided."""

    step: int
    samples: int
    loss: float
    accuracy_by_depth: tuple[float, ...]  # greedy draft = target's top-1, among the slots in the loss
    acceptance_by_depth: tuple[float, ...]  # the first k+1 drafts all match
    conditional_acceptance_by_depth: tuple[float, ...]  # draft k+1 matches, given that those before it did
    simulated_acceptance_length: float

    @property
    def merit(self) -> tuple[float, float]:
        """The key that ranks checkpoints: longer acceptance first, then a lower loss."""
        return self.simulated_acceptance_length, -self.loss

    def describe(self) -> str:
        """Return a one-line summary."""
        depths = " ".join(f"{accuracy:.1%}" for accuracy in self.accuracy_by_depth)
        length = self.simulated_acceptance_length
        return f"held out, step {self.step}: loss {self.loss:.4f} · acceptance length {length:.3f} · accuracy {depths}"


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The state of a run after `step` optimizer steps."""

    step: int = 0
    position: DataPosition = field(default_factory=DataPosition)
    tokens: int = 0
    supervised_tokens: int = 0
    train_seconds: float = 0.0
    waited_seconds: float = 0.0
    first: Evaluation | None = None
    best: Evaluation | None = None
    evaluations_without_gain: int = 0

    def after_evaluation(self, evaluation: Evaluation) -> "RunState":
        """Return the state with an evaluation; the first one, before any step, is a reference and never the best."""
        if self.step == 0:
            return replace(self, first=evaluation)
        if self.best is None or evaluation.merit > self.best.merit:
            return replace(self, best=evaluation, evaluations_without_gain=0)
        return replace(self, evaluations_without_gain=self.evaluations_without_gain + 1)

    def out_of_patience(self, patience: int | None) -> bool:
        return patience is not None and self.evaluations_without_gain >= patience

    @property
    def best_step(self) -> int | None:
        return None if self.best is None else self.best.step


_STATE = TypeAdapter(RunState)
_LARGEST = 2**53


def state_from_json(values: Any) -> RunState:
    """Return the state whose fields are `values`, read from JSON.

    Raises:
        ValueError: the values are not those of a state; names the first that is wrong.
    """
    try:
        state = _STATE.validate_json(canonical_json(values), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(": ".join([*map(str, first["loc"]), first["msg"]])) from None
    fields, position = asdict(state), asdict(state.position)
    if values.keys() != fields.keys() or values["position"].keys() != position.keys():
        raise ValueError(f"other fields than {', '.join([*fields, *position])}")
    numbers = {name: value for name, value in {**fields, **position}.items() if isinstance(value, int | float)}
    if wrong := [name for name, value in numbers.items() if not 0 <= value <= _LARGEST]:
        raise ValueError(f"{wrong[0]} is not between 0 and {_LARGEST:,}")
    return state
