"""What is measured: one program per question, and dated results. Tests never import it."""
