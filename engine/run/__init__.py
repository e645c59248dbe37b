"""The folder of one run: its lock, what is written into it, and how it is told to stop."""
