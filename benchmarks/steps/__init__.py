"""How long a training step takes, in what memory, and where the time goes."""
