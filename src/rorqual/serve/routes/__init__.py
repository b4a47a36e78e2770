"""The routes, grouped by file."""
