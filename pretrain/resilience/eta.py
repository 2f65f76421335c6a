"""How long a run still takes, by how it got on so far."""

from __future__ import annotations

from collections import deque

_MARKS = 20  # log lines whose steps are looked back over
_UNITS = (("d", 86400), ("h", 3600), ("min", 60))


class Eta:
    """The seconds to a run's last step: its steps at the pace of the last log lines, and the pauses to come.

    A validation is taken to last as long as those so far in the mean, and checkpoints to have training stand still
    for as large a share of the steps.
    """

    def __init__(self, now: float, step: int, validated_every: int) -> None:
        """`step`: from which the process goes on, at the time `now` of a clock that never goes back."""
        self._begin, self._every = step, validated_every
        self._marks = deque([(now, step)], maxlen=_MARKS)

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
        validations = after * validated / before if before else 0.0
        return left * ((last - first) / (end - begin) + saved / max(1, step - self._begin)) + validations

    def _validations(self, first: int, last: int) -> int:
        """How many steps after `first` and up to `last` are validated as they come; the run's last step always is."""
        return last // self._every - first // self._every


def duration(seconds: float) -> str:
    """A time in its two largest units: 45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    left = round(seconds)
    if left < 60:
        return f"{left} s"
    left = round(left / 60) * 60  # whole minutes
    words: list[str] = []
    for unit, size in _UNITS:
        count, left = divmod(left, size)
        if count or words:
            words.append(f"{count} {unit}" if count else "")
    return " ".join(filter(None, words[:2]))
