"""Values that are made again when they were forgotten: so many of each group are not."""

from __future__ import annotations

import pickle

from sharding.base.lru import Recent


def test_the_last_values_of_each_group_are_kept() -> None:
    made: list[str] = []

    def get(memory: Recent[str], group: int, key: str) -> str:
        return memory.get(group, key, lambda: made.append(f"{group}{key}") or f"{group}{key}")

    memory: Recent[str] = Recent(2)
    assert [get(memory, 0, key) for key in "abab"] == ["0a", "0b", "0a", "0b"] and made == ["0a", "0b"]
    assert get(memory, 1, "a") == "1a" and get(memory, 0, "a") == "0a" and made[2:] == ["1a"]
    get(memory, 0, "c")  # b was used longest ago
    assert [get(memory, 0, key) for key in "acb"] == ["0a", "0c", "0b"] and made[3:] == ["0c", "0b"]
    elsewhere = pickle.loads(pickle.dumps(memory))
    get(elsewhere, 1, "a")
    assert made[5:] == ["1a"]
    assert [get(elsewhere, 1, key) for key in "bcc"] == ["1b", "1c", "1c"] and made[6:] == ["1b", "1c"]
