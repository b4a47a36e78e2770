"""Save fitted rungs as files, and load them. The files are those of skops, which hold data and names of types, and no code. The file of a
user's rule has the name and the SHA-256 of the Python file, which is run when the rule is loaded."""

from __future__ import annotations

import zipfile
from pathlib import Path

from rorqual.core.errors import ConfigError
from rorqual.core.extras import require_extra
from rorqual.core.records import write_atomic
from rorqual.teach.encoder import Encoder
from rorqual.teach.rungs.calculation import RankedCalculations
from rorqual.teach.rungs.classifiers import FittedClassifier, LogisticRegression, NearestNeighbour
from rorqual.teach.rungs.features import Embeddings, TfIdf
from rorqual.teach.rungs.fields import CrfTagger, FieldLayout, Fields
from rorqual.teach.rungs.regression import NumberRegression
from rorqual.teach.rungs.rung import Guess, Rung
from rorqual.teach.rungs.simple import Majority, UnchangedInput, UserRule
from rorqual.teach.rungs.tuned_fields import TunedFields
from rorqual.teach.rungs.tuned_labels import TunedLabels

TRUSTED = [
    CrfTagger, Embeddings, Encoder, FieldLayout, Fields, FittedClassifier, Guess, LogisticRegression, Majority, NearestNeighbour,
    NumberRegression, RankedCalculations, TfIdf, TunedFields, TunedLabels, UnchangedInput, UserRule, "scipy.sparse._csr.csr_matrix",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
]  # fmt: skip
"""The types that a file may have, beside builtin types, numpy arrays and scikit-learn's estimators."""


def save_rung(rung: Rung, file: Path) -> None:
    """Write a fitted rung to `file`, atomically. Raises ConfigError without skops, or if the rung has a rule without a file."""
    with require_extra("teach", "skops"):
        from skops import io
    write_atomic(file, io.dumps(rung, compression=zipfile.ZIP_DEFLATED, compresslevel=1))


def load_rung(file: Path) -> Rung:
    """Load the rung that `save_rung` wrote. It answers with the same bits as the saved one, and is not to be fitted again.

    Raises ConfigError, with the file, if it cannot be read, if it has a type that is not in `TRUSTED`, or if an encoder or a rule that it
    names is missing or has changed.
    """
    with require_extra("teach", "skops"):
        from skops import io
        from skops.io.exceptions import UntrustedTypesFoundException
    remedy = "Load only files that `rorqual teach` wrote, and repeat it after deleting this one if it is damaged."
    try:
        rung = io.load(file, trusted=TRUSTED)
    except UntrustedTypesFoundException as error:
        raise ConfigError(f"this is no file of a rung. {error}", where=str(file), remedy=remedy) from None
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ConfigError(f"the rung cannot be read: {error}", where=str(file), remedy=remedy) from None
    if not isinstance(rung, Rung):
        raise ConfigError(f"the file has a {type(rung).__name__}, and no rung", where=str(file), remedy=remedy)
    return rung
