"""Bugs in `convert`. Each is put back alone: see ../mutant.py."""

from __future__ import annotations

from mutant import one

MUTANTS = (
    one(
        "an export narrows the router's bias",
        "transformers#42580, vllm#23640 #47777, Automodel#2553",
        "convert/tensor_jobs.py",
        "    if name.endswith(ALWAYS_FP32):\n",
        "    if False:\n",
        "tests/convert/test_hf.py::test_fp8_is_dequantised_to_the_bit_and_the_bias_is_never_narrowed",
    ),
    one(
        "an export confuses the two halves of stacked experts",
        "Pai#451 #640, litgpt#1871",
        "convert/tensor_jobs.py",
        "        for place, index in enumerate(entry.storage_order()):\n",
        "        for place, index in enumerate(range(len(entry.published))):\n",
        "tests/convert/test_hf.py::test_three_trips_change_nothing",
        "tests/convert/test_hf.py::test_what_transformers_saves_comes_back_with_the_same_bytes_and_the_same_logits",
    ),
    one(
        "every slice is dequantised with the first blocks' scales",
        "-",
        "convert/cast.py",
        "_read_finite(self.scale, first, last)",
        "_read_finite(self.scale, 0, last - first)",
        "tests/convert/test_cast.py::test_across_slices_each_block_has_its_own_scale",
    ),
    one(
        "llama's queries and keys are not put back in order",
        "ggml rotates neighbouring pairs: half-split models read from GGUF come out as noise",
        "convert/gguf_names.py",
        "values.unflatten(0, (-1, self.head // 2, 2)).transpose(1, 2).flatten(0, 2)",
        "values",
        "tests/convert/test_gguf.py::test_out_and_in_again_is_the_same_model_bit_for_bit",
    ),
    one(
        "llama's queries and keys are reordered neither way",
        "a round trip of our own does not notice",
        "convert/gguf_names.py",
        'permuted = architecture == "llama" and',
        'permuted = architecture == "none" and',
        "tests/convert/test_gguf.py::test_llamas_queries_and_keys_have_their_halves_interleaved",
    ),
    one(
        "numbers of a rotary scaling are believed though the tensor says others",
        "issue 14",
        "convert/gguf_rope.py",
        "            if torch.allclose(found,",
        "            if parameters is stored or torch.allclose(found,",
        "tests/convert/test_gguf_llama3.py::test_the_tensor_counts_and_not_the_keys",
    ),
    one(
        "of rotary scalings only Llama 3.1's own comes back",
        "issue 14",
        "convert/gguf_rope.py",
        "for parameters in (stored, {}, ",
        "for parameters in ({}, ",
        "tests/convert/test_gguf_llama3.py::test_a_run_comes_back_with_its_very_numbers",
    ),
)
