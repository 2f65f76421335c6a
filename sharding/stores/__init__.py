"""The kinds of store and what goes wrong with them: `sharding.store` is the door."""
