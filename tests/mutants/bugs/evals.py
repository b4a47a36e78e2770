"""Bugs in `evals`. Each is put back alone: see ../mutant.py."""

from __future__ import annotations

from mutant import one

MUTANTS = (
    one(
        "pass@k is the mean over k",
        "lighteval#771",
        "evals/passk.py",
        "    return 1 - math.comb(samples - right, k) / math.comb(samples, k)\n",
        "    return right / samples / k\n",
        "tests/evals/test_passk.py::test_it_equals_every_way_to_draw",
    ),
    one(
        "an evaluation asks anew what it was told",
        "distilabel#1065: generated data lost when a worker died",
        "evals/kept.py",
        "if name in known}",
        "if not name}",
        "tests/cli/test_eval_kept.py::test_a_kill_loses_no_answer_that_was_paid_for",
    ),
    one(
        "what one model answered is taken for another's",
        "a file of answers that is known by the task alone",
        "evals/kept.py",
        "json.dumps(made, sort_keys=True)",
        "json.dumps(sorted(made))",
        "tests/cli/test_eval_kept.py::test_more_samples_and_problems_ask_for_the_further_ones_alone_and_another_model_for_all",
    ),
    one(
        "an evaluation that ends throws away what another has paid for",
        "a review: a look at two problems lost twenty answers",
        "evals/kept.py",
        "self.answers.items() if name not in names}",
        "self.answers.items() if not name}",
        "tests/cli/test_eval_kept.py::test_an_evaluation_that_ends_leaves_what_another_has_paid_for",
    ),
    one(
        "what is kept answers another question",
        "a review: a mutant that survived",
        "evals/kept.py",
        "    asked = asdict(replace(request, params=replace(request.params, n=1)))\n",
        "    asked = [[m.content for m in request.messages], request.params.seed]\n",
        "tests/cli/test_eval_kept.py::test_what_is_kept_answers_the_very_question_alone",
    ),
    one(
        "what a filter took away is kept as an answer",
        "a review: a mutant that survived",
        "evals/kept.py",
        "            if not completion.error:\n",
        "            if completion:\n",
        "tests/cli/test_eval_kept.py::test_what_is_no_answer_is_not_kept_and_usage_is_as_it_was",
    ),
    one(
        "money that is spent is asked for to the end",
        "a review: 400 for an empty account ended as a success",
        "evals/kept.py",
        "            if in_a_row == IN_A_ROW:\n                raise error\n",
        "",
        "tests/cli/test_eval_kept.py::test_a_server_that_refuses_everything_from_some_moment_on_stops_the_evaluation",
    ),
    one(
        "refusals in a row are never reset",
        "issue 14: first bug trial",
        "evals/kept.py",
        "in_a_row = 0\n            arrived(*order[place], completion)",
        "arrived(*order[place], completion)",
        "tests/cli/test_eval_kept.py::test_what_is_always_refused_keeps_nobody_from_going_on",
    ),
    one(
        "the confidence of a comparison is dropped",
        "issue 14: first bug trial",
        "evals/compare.py",
        "hierarchical_difference(olds, news, confidence, samples)",
        "hierarchical_difference(olds, news, samples=samples)",
        "tests/evals/test_evaluation.py::test_the_interval_of_a_comparison_has_the_confidence_asked_for",
    ),
    one(
        "the model itself loses experts, not a copy",
        "issue 14: first bug trial",
        "evals/experts.py",
        "made = copy.deepcopy(model)",
        "made = model",
        "tests/lab/test_experts.py::test_experts_that_are_gone_serve_nothing",
    ),
    one(
        "evaluate ignores the seed of sampling",
        "issue 14: second bug trial",
        "evals/run.py",
        'f"{params.seed}:{key}"',
        'f"{key}"',
        "tests/evals/test_every_argument.py::test_a_problems_seed_is_of_the_evaluations_and_its_key_and_nothing_else_changes",
    ),
    one(
        "a claim's wide interval is of another measure",
        "issue 14: second bug trial",
        "evals/claims.py",
        'wide = compare(before, after, grain=grain, measure=topic.measure, side="greater", confidence=0.99)',
        'wide = compare(before, after, grain=grain, side="greater", confidence=0.99)',
        "tests/evals/test_report.py::test_claims_are_corrected_for_their_number_and_hold_only_beyond_zero",
    ),
)
