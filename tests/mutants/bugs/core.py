"""Bugs in `core`. Each is put back alone: see ../mutant.py."""

from __future__ import annotations

from mutant import one

MUTANTS = (
    one(
        "a torn checkpoint is taken for a whole one",
        "torchtitan#3735",
        "core/records.py",
        "if not file.is_file() or file.stat().st_size != size:",
        "if not file.is_file():",
        "tests/train/test_resume.py::test_a_torn_checkpoint_is_named_and_skipped",
    ),
    one(
        "two processes have one lock",
        "issue 14",
        "core/lock.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        "tests/core/test_lock.py::test_the_other_process_is_named_and_its_kill_frees_the_lock",
    ),
    one(
        "a run is trained in a folder that an import is making",
        "issue 14",
        "core/lock.py",
        "    if _lock_path(folder).exists():\n",
        "    if False:\n",
        "tests/core/test_lock.py::test_a_folder_that_is_being_made_beside_its_place_is_no_place_to_train",
    ),
    one(
        "a device is replaced by a file",
        "our own trial: --result /dev/null",
        "core/records.py",
        "        if path.exists() and not path.is_file() and not path.is_dir():\n",
        "        if False:\n",
        "tests/core/test_core_wiring.py::test_a_pipe_is_written_to_and_stays_a_pipe",
    ),
    one(
        "a picture is written as text by a format that cannot see it",
        "issue 16: content parts",
        "core/content_parts.py",
        "if not isinstance(part, tuple(accepted))",
        "if False",
        "tests/core/test_parts.py::test_a_format_of_text_refuses_a_picture_by_name_and_place",
    ),
    one(
        "text parts are joined with spaces",
        "issue 16: content parts",
        "core/content_parts.py",
        '"".join(part.label() for part in content)',
        '" ".join(part.label() for part in content)',
        "tests/core/test_parts.py::test_the_text_is_that_of_the_parts_in_order_and_a_picture_has_none",
    ),
)
