"""Everything around a training loop: feeding, optimizer, averages, resume, reports."""
