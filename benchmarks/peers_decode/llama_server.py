"""Run llama.cpp's own HTTP server from xllamacpp. Print its address, and serve until stdin ends.

python llama_server.py FILE.gguf --threads 1 --slots 16 --length 2048
"""

from __future__ import annotations

import argparse
import os
import sys

import xllamacpp as x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--length", type=int, default=2048, help="context of each slot, in tokens")
    a = parser.parse_args()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    params = x.CommonParams()
    params.model.path = a.file
    params.n_ctx, params.n_parallel, params.n_gpu_layers = a.slots * a.length, a.slots, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = a.threads
    params.warmup, params.fit_params, params.verbosity = True, False, -1
    server = x.Server(params)
    print(server.listening_address, x.get_system_info(), file=out, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
