"""Load model weights from run directories and published checkpoints. Each checkpoint family has its own module."""
