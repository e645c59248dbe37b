"""The processes of a run and the model that they train: DeepSpeed, DDP or one process."""
