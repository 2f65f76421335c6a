"""What damaged samples a run may meet: each told once, and above a rate the run stops with their list."""

import logging
from collections.abc import Iterable

from pretrain import metrics
from pretrain.data.stream import Damaged
from sharding.errors import UserError

log = logging.getLogger("reelscale")

_LISTED = 50


class Damage:
    """Damaged samples and shards met so far, each counted once.

    samples: those of all that this rank will meet; `rate` of them may be damaged, or a single one if `rate` > 0.
    """

    def __init__(self, where: str, samples: float, rate: float) -> None:
        self.where, self.rate = where, rate
        self.allowed = max(int(samples * rate), 1 if rate else 0)
        self.met: dict[tuple[str, str], Damaged] = {}

    @property
    def samples(self) -> int:
        """How many samples were lost."""
        return sum(damaged.samples for damaged in self.met.values())

    def add(self, found: Iterable[Damaged]) -> None:
        """Count and log what was not met before. Raises UserError, with the list, when it is too much."""
        for damaged in found:
            if (damaged.tar, damaged.name) not in self.met:
                self.met[damaged.tar, damaged.name] = damaged
                metrics.DAMAGED_SAMPLES.inc(damaged.samples)
                log.warning("damaged: %s%s", damaged, "; other samples take their place" if damaged.samples else "")
        if self.samples > self.allowed:
            listed = [str(damaged) for damaged in self.met.values()]
            more = [f"and {len(listed) - _LISTED} more"] if len(listed) > _LISTED else []
            raise UserError(
                f"{self.samples} samples are damaged; data.loader.damaged={self.rate:g} allows {self.allowed}:\n"
                + "\n".join([*listed[:_LISTED], *more]),
                self.where,
                "find out with `reelscale shards verify STORE`, shard these anew, or raise data.loader.damaged",
            )
