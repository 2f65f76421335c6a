"""Counts the damaged samples that a rank meets, logs each once, and stops the run above the share allowed."""

import logging
from collections.abc import Iterable, Sequence
from decimal import Decimal

from pretrain import metrics
from pretrain.data.reading.store_split import DamagedData
from sharding.base.errors import UserError

log = logging.getLogger("reelscale")

_LISTED = 50


class DamageBudget:
    """Counts the damaged samples and shards met so far, each once, against the number that is allowed.

    samples: all of the stores, as passes that are shuffled anew show each rank nearly all in time; `rate` of them may
    be damaged, or a single one if `rate` > 0. In their places stand other samples. Without a rate any number may be,
    and they are left out.
    """

    def __init__(self, where: str, samples: int, rate: float | None) -> None:
        self.where, self.rate = where, rate
        self.allowed = 0 if rate is None else allowed_damage(samples, rate)
        self.met: dict[tuple[str, str], DamagedData] = {}

    @property
    def samples(self) -> int:
        """How many samples were lost."""
        return sum(damaged.samples for damaged in self.met.values())

    def add(self, damages: Iterable[DamagedData]) -> None:
        """Count and log what was not met before. Raises UserError, with the list, when it is too much."""
        instead = "left out of the validation" if self.rate is None else "other samples take their place"
        for damaged in damages:
            if (damaged.tar, damaged.name) not in self.met:
                self.met[damaged.tar, damaged.name] = damaged
                metrics.DAMAGED_SAMPLES.inc(damaged.samples)
                metrics.DECODE_ERRORS.labels(damaged.kind).inc()
                log.warning("damaged: %s%s", damaged, f"; {instead}" if damaged.samples else "")
        if self.rate is not None and self.samples > self.allowed:
            what = f"{self.samples} samples are damaged; data.loader.damaged={self.rate:g} allows {self.allowed}"
            raise damage_error(what, [str(damaged) for damaged in self.met.values()], self.where, "data.loader.damaged")


def allowed_damage(samples: float, rate: float) -> int:
    """How many of the samples may be damaged: the share `rate`, or a single one if `rate` > 0.

    Rounding takes none of them, whether the share was written in decimal or divided: 0.29 of 100 samples are 29, though
    the binary product is less, and 2 / 7 of 7 are 2, though its digits end.
    """
    as_written = Decimal(str(samples)) * Decimal(str(rate))
    return max(int(as_written), int(samples * rate), 1 if rate else 0)


def damage_error(what: str, listed: Sequence[str], where: str, setting: str) -> UserError:
    """The error that says `what` is too much, with the list of what is damaged; `setting` allows more."""
    more = [f"and {len(listed) - _LISTED} more"] if len(listed) > _LISTED else []
    remedy = f"find out with `reelscale shards verify STORE`, shard these anew, or raise {setting}"
    return UserError(f"{what}:\n" + "\n".join([*listed[:_LISTED], *more]), where, remedy)
