"""Bugs of several processes. Each is put back alone: see ../mutant.py."""

from __future__ import annotations

from mutant import one

RANKS = "tests/train/test_ranks.py"
BITS = f"{RANKS}::test_three_processes_train_to_the_bits_of_one"
SUMS = f"{RANKS}::test_sums_have_the_order_of_the_parts"

MUTANTS = (
    one(
        "the sums of ranks are added from the last on",
        "another order of sums, other bits",
        "dist/ranks.py",
        "            total = slices[0].clone()\n            for other in slices[1:]:",
        "            total = slices[-1].clone()\n            for other in slices[:-1].flip(0):",
        SUMS,
    ),
    one(
        "a count is summed twice",
        "pytorch#160285",
        "train/gradient.py",
        "                updates = [update for _, part, _, _ in of_ranks for update in part]",
        "                updates = [update for _, part, _, _ in of_ranks for update in part] + [update for update, _ in done]",
        BITS,
    ),
    one(
        "a missing gradient is a zero that moves a negative zero",
        "0.0 + -0.0 is 0.0",
        "dist/ranks.py",
        "(self.count * width, len(parts)), -0.0,",
        "(self.count * width, len(parts)), 0.0,",
        f"{RANKS}::test_a_missing_tensor_changes_no_bit",
    ),
    one(
        "a tensor that is missing everywhere is zeros",
        "examples#1377",
        "dist/ranks.py",
        "return [piece.view_as(one) if found else None for",
        "return [piece.view_as(one) for",
        SUMS,
    ),
    one(
        "every rank draws all samples",
        "work that is not shared",
        "train/sources/sampler.py",
        "            rows = self.ranks.map(ask, requests)",
        "            rows = ask(requests)",
        f"{RANKS}::test_each_process_samples_its_share",
    ),
    one(
        "ranks with other batches are not noticed",
        "prime-rl#834",
        "train/gradient.py",
        '                ranks.check_same("the batch", [digest for digest, *_ in of_ranks])\n',
        "",
        f"{RANKS}::test_processes_with_other_batches_are_refused",
    ),
    one(
        "ranks of other settings are not noticed",
        "prime-rl#970",
        "train/loop.py",
        '            "settings": run.model_dump_json(),\n',
        "",
        f"{RANKS}::test_processes_that_differ_are_refused",
    ),
    one(
        "another run folder is not noticed",
        "torchtitan#3065",
        "train/loop.py",
        '            "run folder": lock.read_text(encoding="utf-8") if lock.is_file() else "",\n',
        "",
        f"{RANKS}::test_processes_that_differ_are_refused",
    ),
    one(
        "threads share autocast's cache of weights",
        "a step in bf16 depended on the threads' timing",
        "train/gradient.py",
        ", cache_enabled=False",
        "",
        f"{RANKS}::test_bfloat16_has_the_same_bits_with_two_threads",
    ),
    one(
        "a barrier waits half an hour",
        "torchtitan#3065",
        "dist/ranks.py",
        "dist.monitored_barrier(timeout=limit, wait_all_ranks=True)",
        "dist.monitored_barrier(wait_all_ranks=True)",
        f"{RANKS}::test_a_process_that_hangs_or_ends_is_named_in_time",
    ),
    one(
        "the samples of a second engine take the places of the first's",
        "numbers of a part of the requests",
        "engine/remote/rollouts.py",
        "put(replace(completion, request=own[completion.request]))",
        "put(completion)",
        "tests/serve/test_rollout.py::test_one_of_two_servers_is_lost_and_no_sample_changes_or_is_taken_twice",
    ),
    one(
        "a lost engine is asked again in the same step",
        "prime-rl#970",
        "engine/remote/rollouts.py",
        "[engine for engine in self.engines if engine not in self._lost]",
        "list(self.engines)",
        "tests/serve/test_rollout.py::test_one_of_two_servers_is_lost_and_no_sample_changes_or_is_taken_twice",
    ),
)
