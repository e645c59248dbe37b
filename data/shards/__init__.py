"""Shards on disk: manifest, index, reading by position, and tars that others wrote."""
