"""An OpenAI-compatible server for a run. The server process never loads torch; the engine runs in its own process."""
