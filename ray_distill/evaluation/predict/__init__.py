"""Run models over snapshot rows and keep what the measures need."""
