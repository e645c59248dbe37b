"""Masked image modelling on visible tokens only (GreenMIM)."""
