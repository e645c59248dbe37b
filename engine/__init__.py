"""What every program needs: recipes, run folders, processes, checkpoints, reports. Imports no other folder of ours."""
