"""The paged cache of keys and values: blocks, who has them, their names, and the blocks on disk."""
