"""Recipes: how traces are requested."""
