"""Speed: a load, the events it caused, the numbers that follow, and the sweep over a recipe."""
