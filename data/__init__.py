"""Images on disk to micro-batches in memory: shards, order, decoding, loading."""
