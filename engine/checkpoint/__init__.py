"""Checkpoints for any number of processes: their files, how processes write them together and read them again."""
