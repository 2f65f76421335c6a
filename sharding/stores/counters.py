"""What a store was asked for and what came, counted in this process."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counters:
    """Plain numbers that only grow; a copy of a store in another process counts from nought.

    `requests`: operations, each try of them counted (of a directory: reads); `bytes`: of objects read, broken answers
    included; `retries`: tries after the first.
    """

    requests: int = 0
    bytes: int = 0
    retries: int = 0

    def __reduce__(self) -> tuple[type[Counters], tuple[()]]:
        return Counters, ()
