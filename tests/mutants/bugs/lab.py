"""Bugs in `lab`. Each is put back alone: see ../mutant.py."""

from __future__ import annotations

from mutant import one

MUTANTS = (
    one(
        "padding counts as load where balance is measured",
        "torchtitan#4168, Megatron-LM#1984",
        "lab/balance.py",
        "valid = batch.segments.flatten() >= 0",
        "valid = batch.segments.flatten() >= -1",
        "tests/lab/test_balance.py::test_load_and_loss_counted_again_from_outside",
    ),
    one(
        "a baseline of sparse attention trains only as long as the warm-up",
        "issue 18: sparse attention",
        "lab/sparse.py",
        "steps=amount(WARMUP, share) + amount(SPARSE, share),",
        "steps=amount(WARMUP, share),",
        "tests/lab/test_sparse.py::test_rivals_train_as_long_as_the_indexer_on_the_same_data",
    ),
    one(
        "the sparse experiment begins again from the weights that did not learn",
        "issue 18: sparse attention",
        "lab/sparse.py",
        '"seed": run.seed + 1000 * start',
        '"seed": run.seed',
        "tests/lab/test_sparse.py::test_the_first_stage_begins_again_until_retrieval_is_learned",
    ),
    one(
        "the cost of failed starts of the sparse experiment is not counted",
        "issue 18: sparse attention",
        "lab/sparse.py",
        "            cost += run_cost(failed)\n",
        "",
        "tests/lab/test_sparse.py::test_the_first_stage_begins_again_until_retrieval_is_learned",
    ),
    one(
        "the arms of the sparse experiment are measured on problems of training",
        "issue 18: sparse attention",
        "lab/sparse.py",
        'solutions(place, seed, kind, count, "test", length)',
        'solutions(place, seed, kind, count, "train", length)',
        "tests/lab/test_sparse.py::test_an_arm_is_measured_on_held_out_problems_at_each_budget",
    ),
    one(
        "an arm of the sparse experiment keeps the budget that it was trained at",
        "issue 18: sparse attention",
        "lab/sparse.py",
        "model = build(selecting(arm, trained.config, budget, seed=seed, top_p=top_p), seed=0)",
        "model = build(selecting(arm, trained.config, LENGTH // TRAINED, seed=seed, top_p=top_p), seed=0)",
        "tests/lab/test_sparse.py::test_the_whole_of_it_in_small",
    ),
    one(
        "the adaptive budget is cut at its mean",
        "issue 18: sparse attention",
        "lab/sparse.py",
        'cap = budget if arm == "dsa" else CAP * budget',
        "cap = budget",
        "tests/lab/test_sparse.py::test_the_adaptive_budget_selects_as_many_positions_on_average",
    ),
    one(
        "a solution counts as right if any of its tokens is",
        "issue 18: sparse attention",
        "lab/sparse.py",
        "right.append(bool((logits.argmax(-1) == targets).all()))",
        "right.append(bool((logits.argmax(-1) == targets).any()))",
        "tests/lab/test_sparse.py::test_loss_and_exact_solutions_are_a_slow_recomputation",
    ),
    one(
        "random positions are the same in every layer",
        "issue 18: sparse attention",
        "lab/sparse.py",
        "topk=budget, seed=seed, layer=layer)",
        "topk=budget, seed=seed, layer=0)",
        "tests/lab/test_sparse.py::test_every_arm_has_its_own_attention_at_each_budget",
    ),
    one(
        "the goal on needles allows a loss of 20 points",
        "issue 18: sparse attention",
        "lab/sparse_report.py",
        "PERCENT, POINTS = 0.01, 0.02",
        "PERCENT, POINTS = 0.01, 0.2",
        "tests/lab/test_sparse.py::test_each_goal_is_decided_by_its_own_measurements",
    ),
    one(
        "the pairs of an answer are in the order of the text",
        "issue 18: sparse attention",
        "tasks/long.py",
        'answer="".join(pairs[number] for number in asked),',
        'answer="".join(pairs[number] for number in sorted(asked)),',
        "tests/tasks/test_long.py::test_pairs_are_spread_over_the_text_and_answered_in_the_order_of_the_question",
    ),
)
