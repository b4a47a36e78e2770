"""A run behind an OpenAI-compatible address. The server's process never loads torch: the engine has one of its own."""
