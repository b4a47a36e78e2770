"""Check the names that a mixture of problems is made of, such as the names of problem families."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rorqual.core.errors import ConfigError, suggest_name


def check_names(names: Sequence[str], known: Iterable[str], where: str) -> list[str]:
    """Return `names` as a list. Raises ConfigError at `where` for an unknown or repeated name, and for no name."""
    chosen, known = [names] if isinstance(names, str) else list(names), list(known)
    for name in chosen:
        if name not in known:
            raise ConfigError(f"unknown name '{name}'", where=where, remedy=suggest_name(name, known))
    if not chosen or len(set(chosen)) != len(chosen):
        raise ConfigError("names is empty or repeats a name", where=where, remedy="Name each part once.")
    return chosen
