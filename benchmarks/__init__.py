"""What is measured: one program per question, and dated results. Tests may run the drills and check the figures."""
