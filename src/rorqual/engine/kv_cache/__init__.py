"""The paged KV cache in memory and on disk, the block pool, the block hashes, and the manager that assigns blocks to
sequences."""
