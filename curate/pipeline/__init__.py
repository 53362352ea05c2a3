"""Pipelines: stages in order, each skipped when its inputs and config are unchanged."""
