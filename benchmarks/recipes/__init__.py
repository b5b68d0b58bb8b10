"""Whole recipes, measured."""
