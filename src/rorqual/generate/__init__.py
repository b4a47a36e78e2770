"""Answer files of prompts row by row."""
