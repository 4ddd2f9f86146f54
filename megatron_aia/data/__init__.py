"""From shards to micro-batches. The position of a sample in the run is the only state."""
