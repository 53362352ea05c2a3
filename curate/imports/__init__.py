"""Import of existing traces: detect the format, map the columns, keep every turn."""
