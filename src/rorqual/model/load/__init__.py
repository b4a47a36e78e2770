"""Load model weights: from run directories, and from published checkpoints with one module per family."""
