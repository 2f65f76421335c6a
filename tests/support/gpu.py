"""The mark of tests that need a GPU: `pytest -m gpu` is all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch

Test = TypeVar("Test", bound=Callable[..., object])


def needs_gpu(instead: str) -> Callable[[Test], Test]:
    """Mark a test `gpu`, and skip it where there is none; `instead` names what says the same on the CPU, or nearly."""

    def marked(test: Test) -> Test:
        skipped = pytest.mark.skipif(not torch.cuda.is_available(), reason=f"no GPU; on the CPU: {instead}")
        return pytest.mark.gpu(skipped(test))

    return marked
