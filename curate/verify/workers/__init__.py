"""Warm worker processes that judge in parallel under limits."""
