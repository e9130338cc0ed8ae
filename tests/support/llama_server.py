"""A real llama.cpp server in a process of its own, as `python llama_server.py MODEL SLOTS`: it prints its address."""

from __future__ import annotations

import sys
import threading

import xllamacpp


def main(model: str, slots: int) -> None:
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {"SmolLM2"}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = 2048 * slots
    params.n_parallel = slots
    params.endpoint_slots = True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1  # more would spin where cores are busy
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
