"""What lies in a store: the plan of each generation, records, index and failure lists; all that readers depend on."""
