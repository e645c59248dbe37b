"""Shards written: the writer, its journal, its options."""
