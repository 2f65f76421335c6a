"""Which sample comes when: pure functions of shards, seed, pass and lane."""
