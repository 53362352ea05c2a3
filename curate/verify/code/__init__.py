"""Programs: run in a sandbox against tests, compared outside it."""
