"""curate makes reasoning data and trains on it, after the DeepSeek-R1 report."""

__version__ = "0.1.0"
