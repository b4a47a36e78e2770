"""Files of prompts, answered row by row."""
