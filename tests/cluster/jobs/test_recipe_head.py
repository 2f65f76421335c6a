"""What a recipe says is to be expected, as its run keeps it."""

from __future__ import annotations

import pytest

from cluster.jobs.recipe_head import expected_in


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# A.\n# Expected: video@1 64.8 %.\n# Hardware: 8 GPUs.\nseed: 1\n", "video@1 64.8 %."),
        ("# A.\n# Expected: about 85 %. Hardware: 2 cores.\n# Command: x\nseed: 1\n", "about 85 %."),
        ("# Expected: about\n#   85 % of\n#   all. Hardware: 2 cores.\n# Command: x\n", "about 85 % of all."),
        ("# A.\nseed: 1\n# Expected: below the head\n", ""),
        ("", ""),
    ],
)
def test_the_expectation_is_what_stands_behind_its_word(text: str, expected: str) -> None:
    assert expected_in(text) == expected
