"""The errors that commands report without a traceback."""

from __future__ import annotations

from sharding.base.printable import visible, visible_lines


class UserError(Exception):
    """An error that the user can mend, reported without a traceback; the exit code is 2.

    `what` went wrong, `where` (file, field, URL), and the `remedy`: what to do about it.
    """

    def __init__(self, what: str, where: str, remedy: str) -> None:
        super().__init__(what, where, remedy)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{visible_lines(self.what)}\n  where: {visible(self.where)}\n  remedy: {visible_lines(self.remedy)}"


class CommandFailed(Exception):
    """A failure that is nobody's mistake, reported in one message; the exit code is 1."""


class NotRetryable(CommandFailed):
    """A failure that a retry would only meet again, or make worse: no automatic retry follows it."""


class DamagedStore(UserError):
    """An object in a store is missing, cut off, or not what was written."""


class StoreUnreachable(UserError):
    """A store that does not answer: its address may be wrong, or it may be away for a while."""
