"""Data sets, recipes, runs, what is made of them, and the demo."""
