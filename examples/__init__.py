"""What a newcomer starts with: the demo."""
