"""The error a user can cause and can mend."""

from __future__ import annotations

from sharding.base.printable import visible, visible_lines


class UserError(Exception):
    """A mistake of the user's, or of the world around the program, told without a traceback.

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
    """What ends a command through no mistake of anyone's, told in one message; the exit code is 1."""


class NotRetryable(CommandFailed):
    """What another try would only meet again, or make worse: nothing that tries again by itself does so after it."""


class DamagedStore(UserError):
    """Something in a store is missing, cut off, or not what was written."""
