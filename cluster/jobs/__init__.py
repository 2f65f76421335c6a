"""The jobs behind the commands: sharding, training, evaluation."""
