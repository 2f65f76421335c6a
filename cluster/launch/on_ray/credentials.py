"""The command's access to object stores, for its processes on other nodes: AWS_* variables, handed over in memory.

They are arguments of calls to the command's own actors and tasks, which Ray sends to those alone. They are never in a
runtime environment, an actor's creation or a file, which Ray keeps and its dashboard shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from sharding.base import environment


@dataclass(frozen=True)
class StoreCredentials:
    """Variables by which object stores are reached; none of them is ever printed."""

    variables: tuple[tuple[str, str], ...] = field(repr=False)

    @classmethod
    def of_this_process(cls) -> Self:
        """The variables of this process."""
        return cls(environment.aws_variables())

    def adopt(self) -> None:
        """Give this process the variables, in place of its own."""
        environment.adopt_variables(dict(self.variables))
