"""Bugs in `fine_tuning`. Each is put back alone: see ../mutant.py."""

from __future__ import annotations

from mutant import one

ISSUE = "issue 41: OpenAI's fine-tuning API"
MUTANTS = (
    one(
        "another tenant's file is found",
        ISSUE,
        "fine_tuning/store.py",
        "        found = self.files.get(file_id)\n        return found if found is not None and found.tenant == tenant else None",
        "        return self.files.get(file_id)",
        "tests/fine_tuning/test_uploads.py::test_no_tenant_sees_anothers_file",
    ),
    one(
        "another tenant's tuned model answers",
        ISSUE,
        "fine_tuning/service.py",
        "if job.tenant == tenant and not job.is_deleted)",
        "if not job.is_deleted)",
        "tests/fine_tuning/test_tuned_models.py::test_a_model_is_its_tenants_alone",
    ),
    one(
        "a resumed job tells its steps twice",
        ISSUE,
        "fine_tuning/job_process.py",
        "if reached > seen:",
        "if reached:",
        "tests/fine_tuning/test_queue.py::test_no_job_is_lost_and_none_runs_twice",
    ),
    one(
        "the first checkpoint's model is served as the tuned model",
        ISSUE,
        "fine_tuning/service.py",
        "if step else steps[-1:]",
        "if step else steps[:1]",
        "tests/fine_tuning/test_tuned_models.py::test_a_tuned_model_gives_the_answers_of_its_folder",
    ),
    one(
        "turns of weight 0 are trained on",
        ISSUE,
        "core/conversations.py",
        "in_loss=bool(weight)",
        "in_loss=True",
        "tests/data/test_conversations.py::test_openais_fields_of_a_row_are_read",
    ),
    one(
        "the tenant with the most jobs comes first",
        ISSUE,
        "fine_tuning/queue.py",
        "return running[job.tenant], self._turns.get(job.tenant, 0), job.created_at, job.id",
        "return running[job.tenant], 0, job.created_at, job.id",
        "tests/fine_tuning/test_queue.py::test_tenants_take_turns",
    ),
)
