"""The paged KV cache: blocks, their owners and hashes, and the blocks on disk."""
