"""Recipes: ways to request traces."""
