"""Loading and saving weights: run directories, and one module per checkpoint family."""
