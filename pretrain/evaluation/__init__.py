"""How good a model is: online probes, drawn reconstructions, the report of a run."""
