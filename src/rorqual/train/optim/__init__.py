"""The optimizers, one module per kind. Importing this package registers all kinds of optimizers."""

from rorqual.train.optim.adamw import AdamWConfig
from rorqual.train.optim.muon import MuonConfig
from rorqual.train.optim.optimizer import OptimConfig, Optimizer

__all__ = ["AdamWConfig", "MuonConfig", "OptimConfig", "Optimizer"]
