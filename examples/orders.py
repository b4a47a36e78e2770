"""What does an order cost? A task of one's own: problems, a grader, and worked solutions by a generator."""

import random

from rorqual.tasks.answer import final_number
from rorqual.tasks.task import Problem, Task, Verdict, split_of

THINGS = ["pens", "books", "cups", "lamps", "shirts", "plants", "boxes", "chairs", "candles", "bags", "hats", "forks"]


class Orders(Task):
    """Two or three lines, one price each; the total is asked for."""

    name = "orders"

    def problems(self, split, seed):
        rng = random.Random(f"{seed} {split}")
        while True:
            lines = [(rng.randint(2, 9), thing, rng.randint(2, 9)) for thing in rng.sample(THINGS, rng.randint(2, 3))]
            key = " ".join(sorted(f"{count}*{price}" for count, _, price in lines))  # the same sum is the same problem
            if split_of(key) == split:
                listed = ", ".join(f"{count} {thing} at ${price} each" for count, thing, price in lines)
                costs = [count * price for count, _, price in lines]
                steps = [f"{count} * {price} = {count * price}" for count, _, price in lines]
                steps += [f"{sum(costs[:i])} + {costs[i]} = {sum(costs[: i + 1])}" for i in range(1, len(costs))]
                yield Problem(
                    key=key, prompt=f"I order {listed}. How much is it in all?", answer=f"${sum(costs)}",
                    family="orders", level=f"{len(lines)} lines", steps="\n".join(steps),
                )  # fmt: skip

    def grade(self, problem, reply):
        return Verdict.RIGHT if final_number(reply) == final_number(problem.answer) else Verdict.WRONG

    def canonical_answer(self, problem, reply):
        answer = final_number(reply)
        return None if answer is None else str(answer)
