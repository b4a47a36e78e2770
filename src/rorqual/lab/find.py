"""Find experiments by name."""

from __future__ import annotations

from collections.abc import Mapping

from rorqual.core.errors import ConfigError, suggest_name
from rorqual.lab.answers import AnswersExperiment
from rorqual.lab.balance import SolutionBalanceExperiment, TextBalanceExperiment
from rorqual.lab.compute import ComputeExperiment
from rorqual.lab.data_distil import DataDistil
from rorqual.lab.distil_vs_rl import DistilVsRl
from rorqual.lab.effort import EffortExperiment
from rorqual.lab.experiment import Experiment
from rorqual.lab.experts import ExpertsExperiment
from rorqual.lab.nsa import NSAExperiment
from rorqual.lab.shape_experiment import LATENT_VS_FULL, MOE_VS_DENSE, MULTI_TOKEN_PREDICTION
from rorqual.lab.sparse import SparseExperiment
from rorqual.lab.zero import ZeroExperiment, ZeroLongExperiment

EXPERIMENTS: Mapping[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        DistilVsRl(),
        ZeroExperiment(),
        ZeroLongExperiment(),
        TextBalanceExperiment(),
        SolutionBalanceExperiment(),
        ExpertsExperiment(),
        DataDistil(),
        MOE_VS_DENSE,
        LATENT_VS_FULL,
        MULTI_TOKEN_PREDICTION,
        SparseExperiment(),
        NSAExperiment(),
        ComputeExperiment(),
        AnswersExperiment(),
        EffortExperiment(),
    )
}


def find_experiment(name: str) -> Experiment:
    """Return the experiment `name`. Raises ConfigError, with the nearest name and all names, if `name` is unknown."""
    if name not in EXPERIMENTS:
        raise ConfigError(
            f"'{name}' is not an experiment",
            where="lab",
            remedy=f"{suggest_name(name, EXPERIMENTS)} Experiments: {', '.join(EXPERIMENTS)}.".strip(),
        )
    return EXPERIMENTS[name]
