"""What every program needs: recipes, run folders, processes, checkpoints, reports. Imports none of our other folders."""
