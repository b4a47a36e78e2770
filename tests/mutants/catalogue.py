"""Bugs that users of other projects reported, as changes to our source: `scripts/mutants.py` puts each back, alone.

`old` stands exactly once in `file`. `tests` are those that must fail, by an assertion.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """Text of a source file, and what the bug writes instead."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """`seen`: where it was reported."""

    name: str
    seen: str
    changes: tuple[Change, ...]
    tests: tuple[str, ...]


def one(name: str, seen: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    return Mutant(name, seen, (Change(f"src/rorqual/{file}", old, new),), tests)


MUTANTS = (
    one(
        "the router's bias enters the gates",
        "V3 eq. 13 and 16 confused",
        "ops/moe.py",
        "    weights = scores.gather(-1, indices)\n",
        "    weights = (scores + bias).gather(-1, indices)\n",
        "tests/ops/test_moe.py::test_bias_chooses_but_does_not_weigh",
    ),
    one(
        "padding counts as load",
        "torchtitan#4168, Megatron-LM#1984",
        "train/balance.py",
        "routing.indices[valid].flatten()",
        "routing.indices.flatten()",
        "tests/train/test_router_bias.py::test_padding_is_no_load",
    ),
    one(
        "groups not selected are masked with 0",
        "a revision of deepseek_v3",
        "ops/moe.py",
        'groups.masked_fill(~kept.unsqueeze(-1), float("-inf"))',
        "groups.masked_fill(~kept.unsqueeze(-1), 0.0)",
        "tests/parity/test_slow_reference.py::test_a_group_not_selected_never_wins_over_biased_scores_below_zero",
    ),
    one(
        "YaRN's factor is missing from the softmax scale",
        "HF V2 until July 2026",
        "ops/rope.py",
        "    return mscale(rope.yarn.factor, rope.yarn.mscale_all_dim) ** 2\n",
        "    return 1.0\n",
        "tests/parity/test_slow_reference.py::test_hidden_states",
    ),
    Mutant(
        "half-split rotary layout in latent attention",
        "V3.2 ports",
        (
            Change(
                "src/rorqual/model/attention/mla.py",
                "q_rope = rotate(q_rope, cos, sin, interleaved=True)",
                "q_rope = rotate(q_rope, cos, sin, interleaved=False)",
            ),
            Change(
                "src/rorqual/model/attention/mla.py",
                "rotate(k_rope.unsqueeze(2), cos, sin, interleaved=True)",
                "rotate(k_rope.unsqueeze(2), cos, sin, interleaved=False)",
            ),
        ),
        ("tests/parity/test_slow_reference.py::test_hidden_states",),
    ),
    one(
        "the loss is divided in each micro-batch",
        "transformers#34191, trl#2175",
        "train/workers.py",
        "pool.submit(_one, model, objectives, part, totals, dtype) for part in micro",
        "pool.submit(_one, model, objectives, part, [len(micro) * max(o.weight(part), 1e-20) for o in objectives], dtype)"
        " for part in micro",
        "tests/train/test_one_gradient.py::test_the_mean_is_over_trained_tokens_not_over_micro_batches",
    ),
    one(
        "the loss mask is dropped",
        "nanochat#582",
        "train/batch.py",
        "loss_mask=torch.from_numpy(packed.loss_mask).float()",
        "loss_mask=(torch.from_numpy(packed.segments) >= 0).float()",
        "tests/train/test_data_in_training.py::test_only_masked_tokens_are_trained",
    ),
    one(
        "the end of the turn is not trained",
        "slime#514",
        "data/chat/deepseek.py",
        "*[trained] * len(reply)]",
        "*[trained] * (len(reply) - 1), False]",
        "tests/train/test_data_in_training.py::test_the_end_of_the_turn_is_trained",
    ),
    one(
        "packing leaks attention across documents",
        "LlamaFactory#7318, marin#7087",
        "ops/attention.py",
        "    return (same & causal).unsqueeze(1)\n",
        "    return (same | causal).logical_and(causal).unsqueeze(1)\n",
        "tests/train/test_data_in_training.py::test_a_packed_document_gives_the_logits_it_gives_alone",
    ),
    one(
        "replayed gates have no gradient",
        "ISEEKYAN/Megatron-LM#79",
        "ops/moe.py",
        "    weights = scores.gather(-1, indices)\n",
        "    weights = (scores if replay is None else scores.detach()).gather(-1, indices)\n",
        "tests/train/test_grpo.py::test_the_routers_gradient_lives_under_replay",
    ),
    one(
        "the recorded log-probability ignores the temperature",
        "trl#4159",
        "engine/sampler.py",
        "    return tokens.squeeze(1), logprobs.gather(1, tokens).squeeze(1)\n",
        "    return tokens.squeeze(1), logits.float().log_softmax(-1).gather(1, tokens).squeeze(1)\n",
        "tests/train/test_grpo.py::test_sampler_and_trainer_agree_and_flips_are_counted",
    ),
    one(
        "the router's bias becomes bf16 with the weights",
        "transformers#42580, vllm#23640",
        "model/ffn/moe.py",
        "        if moved.dtype != bias.dtype:\n",
        "        if moved.device != bias.device:\n",
        "tests/train/test_router_bias.py::test_it_is_kept_in_fp32_through_save_load_and_bf16",
    ),
    one(
        "an answer to an unparsable gold is right",
        "open-r1#566",
        "tasks/answer.py",
        "    if not golds:\n        return Verdict.UNGRADED\n",
        "    if not golds:\n        return Verdict.RIGHT\n",
        "tests/tasks/test_answer.py::test_a_gold_answer_that_does_not_parse_is_never_right",
    ),
    Mutant(
        "an ungraded answer is a wrong one",
        "open-r1#420, verifiers#831",
        (
            Change(
                "src/rorqual/train/sources/rollouts.py",
                "graded = [v is not Verdict.UNGRADED for v in verdicts]",
                "graded = [True for v in verdicts]",
            ),
            Change(
                "src/rorqual/train/sources/rollouts.py",
                "if one.verdict is Verdict.UNGRADED or (",
                "if (",
            ),
        ),
        ("tests/train/test_sampler_check.py::test_ungraded_answers_are_counted_and_never_trained_on",),
    ),
    one(
        "pass@k is the mean over k",
        "lighteval#771",
        "evals/passk.py",
        "    return 1 - math.comb(samples - right, k) / math.comb(samples, k)\n",
        "    return right / samples / k\n",
        "tests/evals/test_passk.py::test_it_equals_every_way_to_draw",
    ),
    one(
        "multi-token prediction is one token off",
        "V3 eq. 24",
        "train/objectives/mtp.py",
        "batch.targets[:, k:][at]",
        "batch.targets[:, k - 1 : -1][at]",
        "tests/train/test_data_in_training.py::test_only_masked_tokens_are_trained",
    ),
    Mutant(
        "a resumed run begins its data again",
        "torchtitan#3908",
        (
            Change("src/rorqual/train/loop.py", "source.step(state.step)", "source.step(state.step - begun)"),
            Change(
                "src/rorqual/train/loop.py",
                "    saved = time.monotonic()\n    metrics, rollouts =",
                "    saved, begun = time.monotonic(), state.step\n    metrics, rollouts =",
            ),
        ),
        ("tests/train/test_resume.py::test_ctrl_c_and_records_after_the_checkpoint",),
    ),
    one(
        "a torn checkpoint is taken for a whole one",
        "torchtitan#3735",
        "core/records.py",
        "if not file.is_file() or file.stat().st_size != size:",
        "if not file.is_file():",
        "tests/train/test_resume.py::test_a_torn_checkpoint_is_named_and_skipped",
    ),
    one(
        "the bias moves by every micro-batch's own sign",
        "torchtitan#1324",
        "train/workers.py",
        "        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]\n",
        "        self.counts = [b for a, b in zip(self.counts, other.counts, strict=True)]\n",
        "tests/train/test_router_bias.py::test_one_by_four_is_four_by_one",
    ),
    one(
        "a replay is one token off",
        "Megatron-LM#4168",
        "train/sources/rollouts.py",
        "replay[row, start : start + length - 1] =",
        "replay[row, start + 1 : start + length] =",
        "tests/train/test_grpo.py::test_sampler_and_trainer_agree_and_flips_are_counted",
    ),
    one(
        "a teacher's distributions are one token late",
        "trl#2215 #6252, ms-swift#8436",
        "train/sources/distilled.py",
        "reply = slice(start + len(one.prompt_ids) - 1, start + length - 1)",
        "reply = slice(start + len(one.prompt_ids), start + length)",
        "tests/train/test_distilled_source.py::test_the_teachers_row_lies_where_it_predicts",
    ),
    one(
        "forward KL is reverse KL",
        "MiniLLM eq. 1 and 2 confused",
        "train/objectives/distil.py",
        "        return kl(p, q)\n",
        "        return kl(q, p)\n",
        "tests/train/test_distil.py::test_against_a_slow_reference",
    ),
    one(
        "what is not among the teacher's likeliest tokens is dropped",
        "top-k distillation without its tail",
        "train/objectives/distil.py",
        "return torch.cat([p, rest_p], -1), torch.cat([q, rest_q], -1)",
        "return p, q",
        "tests/train/test_distil.py::test_against_a_slow_reference",
    ),
    one(
        "a teacher's prompt is trained on",
        "Megatron-Bridge#3359",
        "train/sources/distilled.py",
        "mask = [False] * len(one.prompt_ids)",
        "mask = [True] * len(one.prompt_ids)",
        "tests/train/test_distilled_source.py::test_it_trains_the_reply_as_it_was_drawn_and_nothing_else",
    ),
    one(
        "samples that a filter dropped are trained on",
        "a filter that only marks",
        "train/sources/distilled.py",
        "kept = file.kept\n",
        "kept = file.rows\n",
        "tests/train/test_distilled_source.py::test_what_a_filter_dropped_is_never_seen",
    ),
    one(
        "a score is of the token after",
        "trl#6252",
        "engine/score.py",
        "place[at, start + len(prompt) - 1]",
        "place[at, start + len(prompt)]",
        "tests/engine/test_score.py::test_it_agrees_with_the_engine_that_drew_them",
    ),
    one(
        "an auxiliary balance loss that no router feels",
        "Megatron-Bridge#5165, minimind#140",
        "train/objectives/aux_balance.py",
        "sequence_balance(routing.scores[valid], ",
        "sequence_balance(routing.scores[valid].detach(), ",
        "tests/lab/test_balance.py::test_the_router_feels_it_and_its_load_evens",
    ),
    one(
        "padding counts as load where balance is measured",
        "torchtitan#4168, Megatron-LM#1984",
        "lab/balance.py",
        "valid = batch.segments.flatten() >= 0",
        "valid = batch.segments.flatten() >= -1",
        "tests/lab/test_balance.py::test_load_and_loss_counted_again_from_outside",
    ),
    one(
        "the KL term has no importance weight",
        "DeepSeek-V3.2, section 3.1",
        "train/objectives/grpo.py",
        "                kl = kl * (now - drawn.sampled).exp()\n",
        "                kl = kl * 1.0\n",
        "tests/train/test_grpo_options.py::test_against_a_slow_reference",
        "tests/parity/test_trl_losses.py::test_loss_and_gradient",
    ),
    one(
        "an overlong answer is punished twice",
        "DAPO, 2503.14476, eq. 13",
        "train/sources/rollouts.py",
        "float(v is Verdict.RIGHT) + self._penalty(",
        "float(v is Verdict.RIGHT) + 2 * self._penalty(",
        "tests/train/test_grpo_rollouts.py::test_overlong_punishment_is_in_the_reward_once",
    ),
    one(
        "a sequence's ratio is the product, not the mean",
        "GSPO, 2507.18071",
        "train/objectives/grpo.py",
        "        return (sums / self.counts)[self.answer]\n",
        "        return sums[self.answer]\n",
        "tests/train/test_grpo_options.py::test_against_a_slow_reference",
    ),
    one(
        "the wider side of the clip is below",
        "DAPO, 2503.14476",
        "train/objectives/grpo.py",
        "ratio.clamp(1 - self.clip_low, 1 + self.clip_high)",
        "ratio.clamp(1 - self.clip_high, 1 + self.clip_low)",
        "tests/train/test_grpo.py::test_a_clipped_token_has_no_gradient_and_only_on_its_side",
    ),
    one(
        "the off-policy mask drops good answers",
        "DeepSeek-V3.2, section 3.1",
        "train/objectives/grpo.py",
        "masked = (drawn.advantage < 0) &",
        "masked = (drawn.advantage > 0) &",
        "tests/train/test_grpo_options.py::test_the_off_policy_mask_drops_only_bad_answers_that_the_model_has_left",
    ),
    one(
        "CISPO's weight has a gradient",
        "MiniMax-M1, 2506.13585",
        "train/objectives/grpo.py",
        "return clipped.detach() * advantage * now,",
        "return clipped * advantage * now,",
        "tests/train/test_grpo_options.py::test_against_a_slow_reference",
    ),
    one(
        "the trainer forgets what top-p cut off",
        "trl#7269; DeepSeek-V3.2, section 3.1",
        "train/objectives/grpo.py",
        "        if batch.kept is not None:\n",
        "        if False:\n",
        "tests/train/test_grpo_rollouts.py::test_a_token_that_was_cut_off_has_no_gradient",
    ),
    one(
        "dynamic sampling pays for what it trains on only",
        "DAPO, 2503.14476",
        "train/sources/rollouts.py",
        "metrics = measure(problems, groups, ",
        "metrics = measure(problems, chosen, ",
        "tests/train/test_grpo_rollouts.py::test_dynamic_sampling_draws_on_until_groups_have_both_rewards",
    ),
    one(
        "requests under way are not reserved against the budget",
        "litellm#40095 #34732",
        "distil/purse.py",
        "self.spent + self._reserved() + most > self.access.budget",
        "self.spent + most > self.access.budget",
        "tests/distil/test_purse.py::test_64_at_once_never_overspend",
    ),
    one(
        "a restart forgets what was under way at a kill",
        "litellm#40095 #34732",
        "distil/purse.py",
        "if name not in arrived | refused)",
        "if name in arrived & refused)",
        "tests/distil/test_purse.py::test_what_was_under_way_at_a_kill_counts_in_full",
    ),
    one(
        "an answer is graded before it is kept",
        "distilabel#1065",
        "distil/factory.py",
        "            full: DiskFull | None = None\n",
        "            self.verify(entries)\n            full: DiskFull | None = None\n",
        "tests/distil/test_remote_teacher.py::test_a_grader_that_crashes_stops_and_what_is_under_way_is_kept",
    ),
    one(
        "a sample that was there is kept twice after a restart",
        "distilabel#1065",
        "distil/teacher.py",
        "                keep([entry for entry in drawn if entry.place in missing], nothing)\n",
        "                keep(drawn, nothing)\n",
        "tests/distil/test_local.py::test_a_restart_gives_what_a_straight_run_gives",
    ),
    one(
        "a problem of the test split is asked and trained on",
        "training files that hold test problems",
        "distil/problems.py",
        "[problem for problem in pool if problem.key not in out]",
        "[problem for problem in pool]",
        "tests/distil/test_contamination.py::test_a_problem_of_the_test_split_is_not_asked_and_named",
    ),
    one(
        "a LoRA is merged without its scale",
        "alpha / r forgotten where an adapter is merged",
        "model/adapter/lora.py",
        "weight.float() + scale * (b.float() @ a.float())",
        "weight.float() + b.float() @ a.float()",
        "tests/train/test_lora.py::test_merged_equals_attached",
    ),
    one(
        "rsLoRA divides by r",
        "use_rslora passed over",
        "model/adapter/lora.py",
        "(math.sqrt(self.r) if self.use_rslora else self.r)",
        "self.r",
        "tests/train/test_lora.py::test_merged_equals_attached",
    ),
    one(
        "the routers' biases move while the routers are frozen",
        "a frozen part that changes",
        "train/loop.py",
        "        if update.counts and run.tune.whole:\n",
        "        if update.counts:\n",
        "tests/train/test_lora.py::test_frozen_tensors_and_biases_of_routers_keep_their_bits",
    ),
    one(
        "weight decay moves the experts that were not chosen",
        "ESFT's masked gradients under a decay of all",
        "model/adapter/esft.py",
        "moe.experts = TunedExperts(moe.experts, chosen)",
        "moe.experts = TunedExperts(moe.experts, range(len(moe.gate)))",
        "tests/train/test_esft.py::test_all_else_keeps_its_bits_though_weights_decay",
    ),
    one(
        "relevance is a mean over tokens, so that long documents count more",
        "ESFT eq. 7 and 8 with one mean",
        "model/adapter/esft.py",
        "    weight = 1 / lengths[number]  # [tokens]\n",
        "    weight = torch.ones_like(lengths[number])\n",
        "tests/train/test_esft.py::test_relevance_is_the_papers_mean_over_documents_of_a_mean_over_tokens",
    ),
    one(
        "thinking that the prompt opened is read as the answer",
        "vllm#13125",
        "data/chat/block.py",
        "        opened = bool(self.choice(thinking))\n",
        "        opened = False\n",
        "tests/data/chat/test_laws.py::test_a_thought_that_the_prompt_opened_is_read_from_inside",
    ),
    one(
        "earlier turns are trained without the block that they were written with",
        "nanochat#582, Qwen3's template",
        "data/chat/block.py",
        "    def as_written(self, message: Message) -> bool:\n        return False\n",
        "    def as_written(self, message: Message) -> bool:\n        return True\n",
        "tests/data/chat/test_laws.py::test_an_earlier_turn_is_not_trained_where_its_block_is_missing",
    ),
    one(
        "what a user types is encoded with the special tokens",
        "template injection",
        "data/chat/chatml.py",
        'self.tokenizer.encode(f"{message.role}\\n{message.content}")',
        'self.tokenizer.encode_trusted(f"{message.role}\\n{message.content}")',
        "tests/data/chat/test_laws.py::test_what_is_typed_never_becomes_a_special_token",
    ),
    one(
        "the role and what is said are encoded apart",
        "ids that differ from the published template's",
        "data/chat/llama3.py",
        '*encode("\\n\\n" + content)',
        '*encode("\\n"), *encode("\\n"), *encode(content)',
        "tests/data/chat/test_golden.py::test_ids_are_those_of_the_published_template",
    ),
    one(
        "an export narrows the router's bias",
        "transformers#42580, vllm#23640 #47777, Automodel#2553",
        "convert/tensors.py",
        "    if name.endswith(ALWAYS_FP32):\n",
        "    if False:\n",
        "tests/convert/test_hf.py::test_fp8_is_dequantised_to_the_bit_and_the_bias_is_never_narrowed",
    ),
    one(
        "an export confuses the two halves of stacked experts",
        "Pai#451 #640, litgpt#1871",
        "convert/tensors.py",
        "        for place, index in enumerate(entry.order()):\n",
        "        for place, index in enumerate(range(len(entry.theirs))):\n",
        "tests/convert/test_hf.py::test_three_trips_change_nothing",
        "tests/convert/test_hf.py::test_what_transformers_saves_comes_back_with_the_same_bytes_and_the_same_logits",
    ),
    one(
        "every slice is dequantised with the first blocks' scales",
        "-",
        "convert/cast.py",
        "                at += rows\n",
        "                at += 0\n",
        "tests/convert/test_cast.py::test_across_slices_each_block_has_its_own_scale",
    ),
)
