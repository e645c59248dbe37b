"""What a run does about losses that are not finite and about processes that hang."""
