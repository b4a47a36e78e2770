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
        "tests/fine_tuning/test_jobs.py::test_a_job_that_is_killed_between_checkpoints_tells_no_step_twice",
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
    one(
        "a job keeps its turn for ever",
        ISSUE,
        "fine_tuning/queue.py",
        "self._running[longest].terminate()",
        "pass",
        "tests/fine_tuning/test_queue.py::test_a_long_job_lets_another_tenants_go_first",
    ),
    one(
        "another tenant's ladder answers",
        ISSUE,
        "fine_tuning/service.py",
        "if job.tenant == tenant and job.has_model and not job.base",
        "if job.has_model and not job.base",
        "tests/fine_tuning/test_ladder.py::test_a_ladder_is_its_tenants_alone_and_answers_chats_alone",
    ),
    one(
        "a ladder's validation file is not its test",
        ISSUE,
        "fine_tuning/ladder.py",
        "str(folder.validation_data) if job.validation_file is not None else",
        "str(folder.validation_data) if job.validation_file is None else",
        "tests/fine_tuning/test_ladder.py::test_the_served_answers_are_the_reports",
    ),
    one(
        "a ladder has a seed of its own",
        ISSUE,
        "fine_tuning/ladder.py",
        "base=NONE, seed=job.seed,",
        "base=NONE, seed=0,",
        "tests/fine_tuning/test_ladder.py::test_the_served_answers_are_the_reports",
    ),
    one(
        "a checkpoint's metrics are those of the base model",
        ISSUE,
        "fine_tuning/job_process.py",
        "**measure(folder.run)})",
        "**measure(RunDir(Path(job.base)))})",
        "tests/fine_tuning/test_tuned_models.py::test_the_served_probabilities_give_the_figures_of_the_checkpoint",
    ),
    one(
        "the validation loss is a mean over rows",
        ISSUE,
        "fine_tuning/validation.py",
        "(sums[:2] / sums[2]).tolist()",
        "(sums[:2] / len(batches)).tolist()",
        "tests/fine_tuning/test_tuned_models.py::test_the_served_probabilities_give_the_figures_of_the_checkpoint",
    ),
    one(
        "every validation pair is the first one",
        ISSUE,
        "fine_tuning/validation.py",
        "objective.term(model, batch, model(batch.tokens, batch.positions, segments=batch.segments)) for batch in batches",
        "objective.term(model, batches[0], model(batches[0].tokens, batches[0].positions, segments=batches[0].segments))\n"
        "        for batch in batches",
        "tests/fine_tuning/test_methods.py::test_the_validation_file_of_pairs_is_measured",
    ),
    one(
        "the replies to a validation file are those of another length",
        ISSUE,
        "fine_tuning/validation.py",
        "params = SamplingParams(max_tokens=source.max_tokens)",
        "params = SamplingParams(max_tokens=4)",
        "tests/fine_tuning/test_methods.py::test_the_validation_file_of_prompts_is_answered",
    ),
)
