"""What users bring, tried: a case, the runs that cases need, and the inputs by kind."""
