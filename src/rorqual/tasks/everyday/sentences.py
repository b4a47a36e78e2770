"""Generation: write a sentence that states given facts, in the active or passive voice."""

from __future__ import annotations

import random
from typing import ClassVar

from rorqual.tasks.everyday.everyday_task import EverydayTask, Form
from rorqual.tasks.task import Problem, Verdict

NOUNS = ("owl", "ant", "eel", "cat", "dog", "fox", "hen", "pig", "bear", "goat")
VERBS = {"see": "seen", "find": "found", "like": "liked", "help": "helped", "lead": "led", "hear": "heard"}
NUMBERS = {1: "", 2: "two", 3: "three", 4: "four"}
FAULTY = 0.3


class Sentences(EverydayTask):
    """Sentence problems: the right replies to `sentences: owl 2, see, ant 1` are `two owls see an ant` and `an ant is seen by two owls`.

    A reply is correct if it equals the active or the passive sentence, including number, agreement, article and
    participle.
    """

    name: ClassVar[str] = "sentences"
    form: ClassVar[Form] = "generation"

    def sample(self, rng: random.Random) -> Problem:
        first, second = rng.sample(NOUNS, 2)
        agent, patient = (f"{noun} {rng.choice(tuple(NUMBERS))}" for noun in (first, second))
        text = f"{agent}, {rng.choice(tuple(VERBS))}, {patient}"
        return self.problem(text, text, rng.choice(self.correct_sentences(text)))

    def correct_sentences(self, prompt: str) -> tuple[str, str]:
        """Return the two correct sentences, active and passive, for a prompt with or without the prefix `sentences: `."""
        agent_fact, verb, patient_fact = prompt.removeprefix(f"{self.name}: ").split(", ")
        agent, patient = _phrase(agent_fact), _phrase(patient_fact)
        many, acted_on = agent_fact.split()[1] != "1", patient_fact.split()[1] != "1"
        return (
            f"{agent} {verb if many else verb + 's'} {patient}",
            f"{patient} {'are' if acted_on else 'is'} {VERBS[verb]} by {agent}",
        )

    def vocabulary_question(self, problem: Problem) -> tuple[str, str]:
        """Return a prompt that states the sentence's facts, such as `words: owl 2, see, ant 1`, and an answer that
        lists the sentence's phrases and verb forms, such as `two owls, sees, seen, an ant`."""
        facts = problem.prompt.removeprefix(f"{self.name}: ")
        agent, verb, patient = facts.split(", ")
        return f"words: {facts}", f"{_phrase(agent)}, {verb}s, {VERBS[verb]}, {_phrase(patient)}"

    def corrupt(self, problem: Problem, rng: random.Random) -> str:
        if rng.random() >= FAULTY:
            return problem.answer
        valid = self.correct_sentences(problem.prompt)
        while True:
            words = problem.answer.split()
            place, fault = rng.randrange(len(words)), rng.choice(("lost", "moved", "other"))
            word = words.pop(place)
            if fault == "moved":
                words.insert(rng.randrange(len(words) + 1), word)
            elif fault == "other":
                words.insert(place, rng.choice(_confusable_words(word)))
            if (faulty := " ".join(words)) not in valid:
                return faulty

    def grade(self, problem: Problem, reply: str) -> Verdict:
        return Verdict.RIGHT if reply.strip() in self.correct_sentences(problem.prompt) else Verdict.WRONG


def _phrase(fact: str) -> str:
    noun, count = fact.split()
    if count == "1":
        return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
    return f"{NUMBERS[int(count)]} {noun}s"


def _confusable_words(word: str) -> tuple[str, ...]:
    """Return words that are easily confused with `word`. If no such words exist, return only `word`, and the caller samples
    another error."""
    stem = word.removesuffix("s")
    if stem in NOUNS or stem in VERBS:
        return (stem if word != stem else f"{word}s",)
    groups = (("a", "an"), ("is", "are"), tuple(VERBS.values()), tuple(NUMBERS.values())[1:])
    return next((tuple(w for w in group if w != word) for group in groups if word in group), (word,))
