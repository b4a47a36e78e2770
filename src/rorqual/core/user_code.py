"""Import of a user's Python file, with errors that name the file and line."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from rorqual.core.errors import RorqualError

USER_MODULE = "rorqual_user_"
"""Prefix of the module names that `import_file` creates."""


def import_file(path: Path, error: type[RorqualError]) -> ModuleType:
    """Import the Python file `path` as a module. Each call of `import_file` executes the file again; no bytecode is written.

    Raises `error` if the file does not exist, or if the import of the file raises an exception. The error names the file and,
    if known, the line.
    """
    if not path.is_file():
        raise error("no such file", where=str(path), remedy="Check the path; it is relative to the current folder.")
    resolved = path.resolve()
    name = f"{USER_MODULE}{resolved.stem}_{hashlib.sha256(str(resolved).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise error("not a Python file", where=str(path), remedy="Name a .py file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look up the module of a class by name
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as raised:  # user code may raise anything
        del sys.modules[name]
        line = raised.lineno if isinstance(raised, SyntaxError) and raised.filename == str(resolved) else None
        frames = traceback.extract_tb(raised.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(resolved)]
        line = line or (lines[-1] if lines else 1)
        what = f"importing it raised {type(raised).__name__}: {raised}"
        raise error(what, where=f"{path}:{line}", remedy="Fix the line with the error.") from raised
    finally:
        sys.dont_write_bytecode = before
    return module
