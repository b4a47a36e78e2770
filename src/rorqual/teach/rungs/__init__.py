"""Methods of answering the prompts of a task without a language model, from the cheapest to the most expensive."""
