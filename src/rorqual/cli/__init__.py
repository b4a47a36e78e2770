"""The command line. Each verb has its own file, and imports torch only if it needs it."""
