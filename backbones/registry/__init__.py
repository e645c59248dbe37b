"""Which backbones there are, and what the programs know of each."""
