"""Which samples a micro-batch holds, and the processes that build it."""
