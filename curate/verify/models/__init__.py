"""Verdicts and rewards from models: a judge and pairwise preferences."""
