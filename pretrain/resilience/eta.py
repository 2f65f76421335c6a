"""How long a run still takes, by how it got on so far."""

from __future__ import annotations

from collections import deque

_MARKS = 20  # log lines whose steps are looked back over


class Eta:
    """The seconds to a run's last step: its steps at the pace of the last log lines, and the pauses to come.

    A validation is taken to last as long as those so far in the mean, and checkpoints to have training stand still
    for as large a share of the steps.
    """

    def __init__(self, now: float, step: int, validated_every: int, validated: float = 0.0, saved: float = 0.0) -> None:
        """`step`: from which the process goes on, at the time `now` of a clock that never goes back.

        validated, saved: seconds that it has stood still until then, as in `at`.
        """
        self._begin, self._every, self._validated, self._saved = step, validated_every, validated, saved
        self._marks = deque([(now - validated - saved, step)], maxlen=_MARKS)

    def at(self, now: float, step: int, steps: int, validated: float, saved: float) -> float | None:
        """The seconds left of `steps` steps when `step` is taken and not yet validated; None where nothing is known.

        validated, saved: seconds that the process has stood still so far for validations, and for checkpoints.
        A step that was taken before is one after a roll-back: the time until then says nothing of what is left.
        """
        worked = now - validated - saved
        if step <= self._marks[-1][1]:
            self._marks.clear()
            self._begin = min(self._begin, step)
        self._marks.append((worked, step))
        (first, begin), (last, end) = self._marks[0], self._marks[-1]
        if end == begin:
            return None
        left = steps - step
        before, after = self._validations(self._begin, step - 1), self._validations(step - 1, steps - 1) + 1
        validations = after * (validated - self._validated) / before if before else 0.0
        a_step = (last - first) / (end - begin) + (saved - self._saved) / max(1, step - self._begin)
        return left * a_step + validations

    def _validations(self, first: int, last: int) -> int:
        """How many steps after `first` and up to `last` are validated as they come; the run's last step always is."""
        return last // self._every - first // self._every
