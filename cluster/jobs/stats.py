"""Statistics of a sharding job under way: counts, rates, failures by kind, the time left, stragglers."""

import math
import time
from collections import Counter, deque
from collections.abc import Callable

from sharding import metrics
from sharding.base.printable import duration
from sharding.make.shard import ShardProgress

_SHORT_SECONDS = 60.0  # nothing that has run for less is late
_WINDOW_SECONDS = 300.0  # rates and the time left go by the last five minutes


class ShardingStats:
    """Sums over shard jobs. A job reports counts from its own beginning: one made a second time is not counted twice.

    Holds the jobs being made and a few samples of the past, however many jobs there are. `total`: videos to be done.
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.videos = self.samples = self.frames = self.bytes_in = self.bytes_out = self.jobs = 0
        self.failures: Counter[str] = Counter()
        self._clock = clock
        self._running: dict[str, ShardProgress] = {}
        self._since: dict[str, float] = {}
        self._past: deque[tuple[float, int, int, int, int]] = deque([(clock(), 0, 0, 0, 0)])
        self._took: deque[float] = deque(maxlen=100)  # seconds of the last jobs
        self.refresh()

    def began(self, job: str) -> None:
        """Note that a job was given to a worker."""
        self._since.setdefault(job, self._clock())

    def add(self, progress: ShardProgress) -> None:
        """Count what a job has done since its last report."""
        self.began(progress.job)
        last = self._running.get(progress.job, ShardProgress(progress.job, progress.split))
        if progress.made_by_another:
            self.total -= progress.videos - last.videos
        else:
            self._count(last, progress)
        if progress.done:
            self._took.append(self._clock() - self._since.pop(progress.job))
            self._running.pop(progress.job, None)
            self.jobs += 1
            metrics.JOBS.inc()
        elif progress.videos > last.videos:
            self._running[progress.job] = progress
        self.refresh()

    def straggler(self) -> tuple[str, float] | None:
        """The job that has run the longest, and its seconds, if that is over three times the usual."""
        if not self._since or len(self._took) < 3:
            return None
        job, since = min(self._since.items(), key=lambda item: item[1])
        seconds = self._clock() - since
        usual = sorted(self._took)[len(self._took) // 2]
        return (job, seconds) if seconds > max(3 * usual, _SHORT_SECONDS) else None

    def rates(self) -> tuple[float, float, float, float]:
        """Videos, frames, bytes in and bytes out a second, over the last five minutes."""
        begin, *before = self._past[0]
        now = self._clock()
        counts = (self.videos, self.frames, self.bytes_in, self.bytes_out)
        first, second, third, fourth = (
            (count - old) / max(now - begin, 1e-9) for count, old in zip(counts, before, strict=True)
        )
        return first, second, third, fourth

    def seconds_left(self) -> float | None:
        """The seconds until all is done at the rate of the last five minutes; None if nothing was done in them."""
        videos_per_second = self.rates()[0]
        return max(0, self.total - self.videos) / videos_per_second if videos_per_second else None

    def line(self) -> str:
        """Rates, failures and the time left in one line for people."""
        videos, frames, read, written = self.rates()
        parts = [
            f"{videos:.3g} videos/s",
            f"{frames:,.0f} frames/s",
            f"in {read / 1e6:,.1f} MB/s",
            f"out {written / 1e6:,.2f} MB/s",
        ]
        if self.failures:
            kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.failures.most_common(4))
            parts.append(f"failed {sum(self.failures.values()):,} ({kinds})")
        left = self.seconds_left()
        if left is not None and self.videos < self.total:
            parts.append(f"{duration(left)} left")
        straggler = self.straggler()
        if straggler:
            parts.append(f"{straggler[0]} has run for {duration(straggler[1])}")
        return "  ".join(parts)

    def _count(self, last: ShardProgress, progress: ShardProgress) -> None:
        for name, counter in _COUNTERS.items():
            more = max(0, getattr(progress, name) - getattr(last, name))
            setattr(self, name, getattr(self, name) + more)
            counter.inc(more)
        videos = max(0, progress.videos - last.videos)
        good = min(videos, max(0, progress.good_videos - last.good_videos))
        self.videos += videos
        metrics.VIDEOS.labels("good").inc(good)
        metrics.VIDEOS.labels("failed").inc(videos - good)
        for kind, count in progress.failures.items():
            more = max(0, count - last.failures.get(kind, 0))
            self.failures[kind] += more
            metrics.FAILURES.labels(kind=kind).inc(more)

    def refresh(self) -> None:
        """Bring the gauges up to now, which go on while no job reports."""
        now = self._clock()
        if now - self._past[-1][0] > _WINDOW_SECONDS / 30:
            self._past.append((now, self.videos, self.frames, self.bytes_in, self.bytes_out))
            while now - self._past[1][0] > _WINDOW_SECONDS:
                self._past.popleft()
        metrics.REMAINING.set(max(0, self.total - self.videos))
        left = self.seconds_left()
        metrics.LEFT_SECONDS.set(math.nan if left is None else left)
        metrics.OLDEST_SECONDS.set(now - min(self._since.values(), default=now))


_COUNTERS = {
    "samples": metrics.SAMPLES,
    "frames": metrics.FRAMES,
    "bytes_in": metrics.BYTES_READ,
    "bytes_out": metrics.BYTES,
}
