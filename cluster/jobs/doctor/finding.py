"""What a check of the machine has to say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "wrong", "skipped"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check: `what` was seen, and the `remedy` where something is to be mended.

    `warning`: work runs, but worse than it could, or only some of it. `skipped`: there is nothing to check here.
    """

    name: str
    state: State
    what: str
    remedy: str = ""


@dataclass(frozen=True)
class Verdict:
    """A check's outcome without its name: what the deciders return."""

    state: State
    what: str
    remedy: str = ""

    def of(self, name: str) -> Finding:
        """As the finding of the check with that name."""
        return Finding(name, self.state, self.what, self.remedy)


def ok(what: str) -> Verdict:
    """All is as it should be."""
    return Verdict("ok", what)


def warning(what: str, remedy: str) -> Verdict:
    """Work runs, but worse than it could, or only some of it."""
    return Verdict("warning", what, remedy)


def wrong(what: str, remedy: str) -> Verdict:
    """Work fails until it is mended."""
    return Verdict("wrong", what, remedy)


def skipped(what: str) -> Verdict:
    """There is nothing to check, for this reason."""
    return Verdict("skipped", what)
