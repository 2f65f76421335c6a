"""What a rank says of itself to Prometheus beside what it counts: which run it trains, and how its GPU is."""
