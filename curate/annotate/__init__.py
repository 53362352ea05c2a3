"""Annotation: verdicts and signals next to stored traces; nothing is dropped."""
