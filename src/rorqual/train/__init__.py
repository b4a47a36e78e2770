"""The training loop. Pretraining, fine-tuning and reinforcement learning share the loop and differ only in source and objective."""
