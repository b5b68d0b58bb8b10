"""Recipes: a config in, a run folder and a Result out."""
