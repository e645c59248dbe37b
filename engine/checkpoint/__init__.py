"""Layout-free checkpoints: their files, how processes write them together, how any number of processes reads them."""
