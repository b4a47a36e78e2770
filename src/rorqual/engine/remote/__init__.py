"""An engine behind an OpenAI-compatible address, with the interface of the local one."""
