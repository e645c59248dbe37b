"""What every package calls alike, as types."""

MicroBatchKey = tuple[int, int]
"""A micro-batch by its step and its number in the step: with the run's seed, all that its content depends on."""
Size = tuple[int, int]
"""Height and width, in pixels or in cells of a grid."""
