"""Ranks of several world sizes at once, each a fork of this process, which has loaded what takes long to load."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from pretrain.engine.distributed import free_port


def all_ranks_end_well(
    run_rank: Callable[[int, int, int, Path], None], world_sizes: Iterable[int], folder: Path
) -> bool:
    """Whether `run_rank(rank, world size, port, folder)` returned in every rank of every world size."""
    children = []
    for size in world_sizes:
        port = free_port()
        for rank in range(size):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    run_rank(rank, size, port, folder)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                os._exit(code)
            children.append(child)
    codes = [os.waitpid(child, 0)[1] for child in children]
    return not any(codes)
