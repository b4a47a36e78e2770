"""The command line. Each verb has its own file. Only verbs that need torch import it."""
