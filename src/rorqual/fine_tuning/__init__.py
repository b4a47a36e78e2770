"""OpenAI's fine-tuning API: uploaded files, a queue of jobs, and the tuned models, which the same server answers with."""
