"""The training loop. Pretraining, fine-tuning and reinforcement learning share it and differ only in source and objective."""
