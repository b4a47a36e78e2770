"""Run transformers' generate with the settings of each request.

python transformers_side.py HF_FOLDER --threads 1
"""

from __future__ import annotations

import argparse
import gc
import sys
from typing import Any

import torch
import transformers
from talk import Told, Watch, answer, prompts, told
from transformers import (
    AutoModelForCausalLM,
    CompileConfig,
    DynamicCache,
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)


class Clock(StoppingCriteria):
    """Records a lap after each token. The first call ends the prefill, the last one the decoding."""

    def __init__(self) -> None:
        self.watch, self.laps = Watch(), []  # type: ignore[var-annotated]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        self.laps.append(self.watch.lap())
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Theirs:
    """Holds one model at a time and reloads it when a request has another setting."""

    def __init__(self, folder: str) -> None:
        self.folder, self.loaded, self.model = folder, (), None
        self.config = transformers.AutoConfig.from_pretrained(folder)
        self.cache: tuple[tuple[int, int], Any] = ((0, 0), None)

    def load(self, dtype: str, attention: str, experts: str) -> Any:
        if self.loaded != (dtype, attention, experts):
            self.model, self.cache = None, ((0, 0), None)
            gc.collect()
            words: dict[str, Any] = {"dtype": getattr(torch, dtype), "attn_implementation": attention}
            if hasattr(self.config, "n_routed_experts"):
                words["experts_implementation"] = experts
            self.model = AutoModelForCausalLM.from_pretrained(self.folder, **words).eval()
            self.loaded = (dtype, attention, experts)
        return self.model

    def measure(self, asked: Told) -> Told:
        """Time prefill and decoding. `setting` holds dtype, attention, experts, and cache: "dynamic", "static" or "static, compiled"."""
        batch, length, new, setting = asked["batch"], asked["prompt"], asked["new"], asked["setting"]
        model = self.load(setting["dtype"], setting["attention"], setting.get("experts", "eager"))
        ids = torch.tensor(prompts(batch, length, self.config.vocab_size))
        cache, static = None, setting["cache"].startswith("static")
        warm = bool(asked.get("warm")) and self.cache[0] == (batch, length)
        if not static and asked.get("keep"):
            cache = self.cache[1] if warm else DynamicCache(config=self.config)
            if warm:
                cache.crop(length - 1 - cache.get_seq_length())  # generate computes the prompt's last token again
            self.cache = ((batch, length), cache)
        how = GenerationConfig(
            max_new_tokens=new + 1,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
            bos_token_id=None,
            cache_implementation="static" if static else None,
            disable_compile=not setting["cache"].endswith("compiled"),
            compile_config=compiling() if setting["cache"].endswith("compiled") else None,
        )
        model.generation_config = how
        more = {} if cache is None else {"cache": cache}
        with torch.inference_mode():
            clock = Clock()
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=how,
                stopping_criteria=StoppingCriteriaList([clock]),
                **more,
            )
        first, rest = clock.laps[0], clock.laps[1:]
        decode = [sum(lap[i] for lap in rest) for i in (0, 1)]
        prefill, prefilled = ([0.0, 0.0], 0) if warm and cache is not None else (first, batch * length)
        return told(prefill, prefilled, decode, len(rest) * batch, out[:, length:].tolist())


def compiling() -> CompileConfig:
    """Return a config that enables torch.compile on a CPU, where generate disables it by default."""
    config = CompileConfig(fullgraph=False, dynamic=True, mode="default")
    config._compile_all_devices = True
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    transformers.logging.set_verbosity_error()
    side = Theirs(a.folder)
    system = f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
    info = {"engine": f"transformers {transformers.__version__}", "system": system, "vocab": side.config.vocab_size}
    answer(info, side.measure)


if __name__ == "__main__":
    sys.exit(main())
