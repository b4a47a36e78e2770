"""Several processes that train together, on torch.distributed."""
