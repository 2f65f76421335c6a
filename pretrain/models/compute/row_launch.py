"""How `row_kernels` are launched: the grid and the blocks by which each kernel walks over rows M C. No Triton here."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch


class Launch(NamedTuple):
    """How a kernel walks over M C: `columns` programs of `block` columns, by `groups` of `rows` super-rows each.

    A super-row is `repeats` rows of C side by side, so that columns × block = repeats × C. `unrolled` super-rows are
    read at once, by `warps` warps.
    """

    columns: int
    groups: int
    rows: int
    repeats: int
    block: int
    unrolled: int
    warps: int

    @property
    def partial(self) -> int:
        """Rows of C channels of partial sums that a reducing kernel leaves."""
        return self.groups * self.repeats


class _Shape(NamedTuple):
    programs: int  # wanted on each multiprocessor
    block: int
    unrolled: int
    warps: int


# As measured on an H200; sums want few programs, since each leaves partial sums, and what writes wants many.
SHAPES = {
    "moments": _Shape(8, 1024, 2, 4),
    "slopes": _Shape(8, 512, 2, 2),
    "apply": _Shape(32, 512, 8, 4),
    "inner": _Shape(32, 1024, 4, 8),
}
_FEWEST = 8  # super-rows of a program of those that sum, lest its partial sums be as much as what it reads
_WIDEST = 8192  # columns up to which a super-row is widened, for programs side by side


def launch(rows: int, channels: int, kernel: str, processors: int) -> Launch:
    """How a kernel ("moments", "slopes", "apply" or "inner") walks over rows × channels on so many multiprocessors."""
    programs, block, unrolled, warps = SHAPES[kernel]
    repeats = block // math.gcd(block, channels)
    while channels * repeats < _WIDEST and repeats < rows:
        repeats *= 2
    supers = -(-rows // repeats)
    columns = channels * repeats // block
    groups = max(1, -(-programs * processors // columns))
    fewest = _FEWEST if kernel in ("moments", "slopes") else 1
    each = min(max(-(-supers // groups), fewest), supers)
    each = -(-each // unrolled) * unrolled
    return Launch(columns, -(-supers // each), each, repeats, block, unrolled, warps)


def processors(device: torch.device) -> int:
    """The multiprocessors of a GPU; 1 of a CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
