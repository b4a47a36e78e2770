"""The command line of Rorqual. Each command (verb) has its own file in `verbs`. Only commands that need torch import
torch."""
