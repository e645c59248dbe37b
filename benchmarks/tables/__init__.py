"""Parameters and multiply-accumulates beside the published ones."""
