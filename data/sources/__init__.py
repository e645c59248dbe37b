"""Where samples come from before they are in shards."""
