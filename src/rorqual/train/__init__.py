"""One training loop for pretraining, fine-tuning and reinforcement learning, which differ in source and objective."""
