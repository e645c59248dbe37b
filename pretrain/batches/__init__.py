"""What a loader worker makes: crops, masks, and what a mask means for the encoder. Imports no network."""
