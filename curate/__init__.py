"""Make reasoning data and train on it, following the DeepSeek-R1 report.

The Python API is `curate.api`.
"""

__version__ = "0.1.0"
