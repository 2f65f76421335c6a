"""What lies in a store: plan, generations, records, index and failure lists."""
