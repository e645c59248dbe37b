"""One attempt at a job on a node: its processes, how they ended, and whether the job starts again."""
