"""One loop for pretraining, fine-tuning and reinforcement; they differ in source and objective."""
