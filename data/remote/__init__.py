"""Files on servers and in buckets, and their cache on this node."""
