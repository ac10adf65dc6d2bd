"""Training: recipes, losses, schedules and the loop."""
