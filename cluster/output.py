"""Standard output kept clear for one result."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Inside the `with`, what this process and those it starts print goes to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def bars(title: str, counts: dict[str, int], most: int = 12, width: int = 40) -> str:
    """A small histogram: the largest of `counts` in their order, the rest summed up. "" for nothing."""
    if not counts:
        return ""
    kept = set(sorted(counts, key=lambda name: -counts[name])[:most])
    longest = max(counts.values())
    lines = [title]
    for name, count in counts.items():
        if name in kept:
            lines.append(f"  {name[:30]:<30} {count:>10,} {'█' * max(1, round(width * count / longest))}")
    rest = len(counts) - len(kept)
    if rest:
        lines.append(f"  {f'… and {rest} more':<30} {sum(counts.values()) - sum(counts[name] for name in kept):>10,}")
    return "\n".join(lines) + "\n"
