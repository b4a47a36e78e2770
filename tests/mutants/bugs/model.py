"""Bugs in `model`. Each is put back alone: see ../mutant.py."""

from __future__ import annotations

from mutant import one

MUTANTS = (
    one(
        "half-split rotary layout in latent attention",
        "V3.2 ports",
        "model/attention/mla.py",
        "dim=2), cos, sin, interleaved=True)",
        "dim=2), cos, sin, interleaved=False)",
        "tests/parity/test_slow_reference.py::test_hidden_states",
    ),
    one(
        "the router's bias becomes bf16 with the weights",
        "transformers#42580, vllm#23640",
        "model/ffn/moe.py",
        "        if moved.dtype != bias.dtype:\n",
        "        if moved.dtype != bias.dtype and bias.is_meta:\n",
        "tests/train/test_router_bias.py::test_it_is_kept_in_fp32_through_save_load_and_bf16",
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
        "Qwen2's bias is dropped",
        "ports that share Llama's attention",
        "model/attention/gqa.py",
        "dim=-1), self.v_proj(x)\n",
        "dim=-1), x @ self.v_proj.weight.T\n",
        "tests/parity/test_family_parity.py::test_logits_equal_transformers",
    ),
    one(
        "an attention_factor that was not said is written as 0",
        "transformers takes it for the factor: every angle is 0",
        "model/load/keys.py",
        'unsaid = {"attention_factor"} if not rope.yarn.attention_factor else set()',
        "unsaid: set[str] = set()",
        "tests/model/test_checkpoint_families.py::test_qwen_yarn_as_its_card_says_to_write_it",
    ),
    one(
        "gates of all experts are written before their ups",
        "Pai#451, litgpt#1871: conversion round trips gave noise",
        "model/load/names.py",
        "return tuple(index + half for index in range(n) for half in (0, n))",
        "return tuple(range(2 * n))",
        "tests/model/test_load_fp8.py::test_pieces_in_their_order_are_the_bytes_of_the_whole",
    ),
    one(
        "what a latent is read with is laid out in the order of the other",
        "both maps are [heads, same, same] where nope and v are as wide",
        "model/attention/mla.py",
        "        self.up = w_uk.detach().contiguous(), w_uv.detach().contiguous()\n",
        "        self.up = w_uv.detach().contiguous(), w_uk.detach().contiguous()\n",
        "tests/engine/test_packed.py::test_it_is_the_same_model",
    ),
)
