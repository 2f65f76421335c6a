"""Why a try of Ray's ranks failed, in one line: which rank, where, of what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sharding.base.errors import CommandFailed, NotRetryable, StoreUnreachable, UserError

_FIRST_LINE = 300  # characters
_NODE_DEATHS = ("node has died", "node died", "node was terminated", "node is dead")  # in Ray's words


@dataclass(frozen=True)
class Failure:
    """One line that says why a try failed; `error`, where another try would only meet it again."""

    line: str
    error: UserError | NotRetryable | None = None
    ranks_ran: bool = True

    def final(self, began: bool) -> UserError | NotRetryable | None:
        """The error with which the run ends, if another try would meet it again; `began`: the run has trained before.

        A store that answered then is only away.
        """
        return None if began and isinstance(self.error, StoreUnreachable) else self.error


def failure_of(failures: Mapping[int, BaseException], hosts: Mapping[int, str], ranks: int) -> Failure:
    """The failure of a try, from each failed rank's error; `hosts`: where ranks ran.

    A rank's death counts as the cause before an error that a rank told, and that before what others saw of it.
    """
    rank = min(failures, key=lambda each: (_rank_of_cause(failures[each]), each))
    where = f" on {hosts[rank]}" if rank in hosts else ""
    line = f"rank {rank} of {ranks}{where} {_what(failures[rank])}"
    return Failure(line, not_again(failures.values()))


def start_failure(error: BaseException) -> Failure:
    """The failure of a try whose ranks did not come to train, from Ray Train's error: in its last line is the cause."""
    lines = [line.strip() for line in str(getattr(error, "controller_failure", error)).splitlines() if line.strip()]
    return Failure(f"the ranks did not start ({(lines or [type(error).__name__])[-1][:_FIRST_LINE]})", ranks_ran=False)


def not_again(failures: Iterable[BaseException]) -> UserError | NotRetryable | None:
    """The first of the ranks' errors that another try would only meet again; None where one may go better."""
    return next((failure for failure in failures if isinstance(failure, UserError | NotRetryable)), None)


def _rank_of_cause(error: BaseException) -> int:
    if isinstance(error, UserError | NotRetryable):
        return 0
    if isinstance(error, CommandFailed):
        return 3
    return 1 if _is_death(error) else 2


def _is_death(error: BaseException) -> bool:
    """Whether Ray lost the rank's process. Ray Train (2.59, 2.60) wraps what its look after the rank met."""
    inner = getattr(error, "health_check_failure", error)
    return any(each.__name__ in ("RayActorError", "WorkerHealthCheckTimeoutError") for each in type(inner).__mro__)


def _what(error: BaseException) -> str:
    text = str(getattr(error, "health_check_failure", error))
    if not _is_death(error):
        first = text.strip().partition("\n")[0][:_FIRST_LINE]
        is_ours = isinstance(error, CommandFailed | UserError)
        return f"failed: {first}" if is_ours else f"failed: {type(error).__name__}: {first}"
    if any(words in text for words in _NODE_DEATHS):
        return "is lost: its node died, or cannot be reached"
    if "running low on memory" in text or "OutOfMemory" in text:
        return "is lost: its node ran out of memory, and Ray ended it"
    return "is lost: its process died"
