"""The single faults of `benchmarks/drills/data_faults.py`, and what brings them about."""
