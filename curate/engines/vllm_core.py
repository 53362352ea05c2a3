"""The part of the vLLM engine that runs in the child process: one `LLMEngine`, fed and stepped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

from curate.engines.base import model_length
from curate.engines.child import Done, Job
from curate.engines.proof import compare, describe, prove
from curate.records import Completion, Request

GIB = 1 << 30
CPU_SHARE = 0.25  # of the free memory of our NUMA node: a trainer and verifiers share the machine
CPU_CACHE_MAX = 4.0  # GiB: 180,000 tokens of a 135M model; more does not make two cores faster
GPU_SHARE = 0.9  # of the memory that is free on the GPU when the engine starts


class VllmCore:
    def __init__(self, model_dir: str, config: dict[str, Any]) -> None:
        from vllm.platforms import current_platform

        self.cpu = current_platform.is_cpu()
        if self.cpu:
            # Even in eager mode vLLM compiles one kernel (the rank of a sampled token): 35 s of
            # g++.
            os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
        from vllm import SamplingParams
        from vllm.engine.arg_utils import EngineArgs
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.llm_engine import LLMEngine

        self.params = SamplingParams
        self.final = RequestOutputKind.FINAL_ONLY
        self.ends = list(config["end_token_ids"])
        arguments = self._arguments(model_dir, config)
        self.lora = self._lora(arguments)
        self.engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        self.jobs: dict[str, Job] = {}
        self.proof: dict[str, Any] = {}

    def _arguments(self, model_dir: str, config: dict[str, Any]) -> dict[str, Any]:
        chosen: dict[str, Any] = {
            "model": model_dir,
            "dtype": config["dtype"],
            "max_model_len": config["max_model_len"],
            "seed": config["seed"],
            "tensor_parallel_size": config["tensor_parallel_size"],
            "enable_prefix_caching": True,
            "logprobs_mode": "processed_logprobs",
            "disable_log_stats": True,
            "trust_remote_code": False,
        }
        if self.cpu:
            size = config["memory"] or min(CPU_CACHE_MAX, CPU_SHARE * free_cpu_memory() / GIB)
            chosen |= {"enforce_eager": True, "kv_cache_memory_bytes": int(size * GIB)}
            # After a partial prefill vLLM rewinds a seeded generator, which is impossible for one
            # on a CPU.
            chosen |= {
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(
                    4096, config["max_model_len"] or model_length(model_dir)
                ),
            }
        elif config["memory"]:
            chosen["kv_cache_memory_bytes"] = int(config["memory"] * GIB)
        else:
            chosen["gpu_memory_utilization"] = free_gpu_share()
        if config["transfer"] == "nccl":
            chosen["weight_transfer_config"] = {"backend": "nccl"}
        return chosen | config["args"]

    def _lora(self, arguments: dict[str, Any]) -> Any:
        """The adapter in `args.lora_path`, for every request; None without one."""
        path = arguments.pop("lora_path", None)
        if path is None:
            return None
        from vllm.lora.request import LoRARequest

        rank = json.loads((Path(path) / "adapter_config.json").read_text())["r"]
        arguments.setdefault("enable_lora", True)
        arguments.setdefault("max_lora_rank", max(8, 1 << (int(rank) - 1).bit_length()))
        return LoRARequest("adapter", 1, str(path))

    def info(self) -> dict[str, Any]:
        config = self.engine.vllm_config
        return {
            "max_model_len": config.model_config.max_model_len,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "kv_cache_tokens": (config.cache_config.num_gpu_blocks or 0)
            * config.cache_config.block_size,
        }

    # --- requests

    def add(self, job: Job) -> Done | None:
        number, ids, request = job
        sampling = request.sampling
        try:
            params = self.params(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_tokens,
                stop=list(sampling.stop) or None,
                include_stop_str_in_output=True,
                stop_token_ids=self.ends,
                seed=request.seed,
                logprobs=0 if sampling.logprobs else None,
                flat_logprobs=True,
                output_kind=self.final,
            )
            self.engine.add_request(
                str(number), {"prompt_token_ids": ids}, params, lora_request=self.lora
            )
        except Exception as error:  # vLLM raises a dozen classes, all about this request only
            return number, Completion(
                request.request_id,
                "",
                "error",
                ids,
                prompt_tokens=len(ids),
                error=f"refused by vLLM: {error}",
            )
        self.jobs[str(number)] = job
        return None

    def busy(self) -> bool:
        return bool(self.jobs)

    def step(self) -> list[Done]:
        done: list[Done] = []
        for output in self.engine.step():
            if output.finished and output.request_id in self.jobs:
                number, ids, request = self.jobs.pop(output.request_id)
                done.append((number, completion_of(output, ids, request)))
        return done

    def abort(self) -> None:
        self.engine.abort_request(list(self.jobs))
        self.jobs.clear()
        while self.engine.has_unfinished_requests():
            self.engine.step()

    # --- weights

    def update_weights(self, directory: str) -> str:
        self.engine.collective_rpc("reload_weights", kwargs={"weights_path": directory})
        self.engine.reset_prefix_cache()
        return self.prove_weights(directory)

    def prove_weights(self, directory: str) -> str:
        """The fingerprint of the engine's tensors; RuntimeError if they differ from the files."""
        return self._proved(directory, f"'{directory}'")

    def transfer(self, method: str, *args: Any) -> None:
        """Make a call of vLLM's weight transfer in every worker (see `vllm_transfer.Children`)."""
        self.engine.collective_rpc(method, args=args)

    def prove_transfer(self, expected: dict[str, dict[str, Any]]) -> str:
        """Like `prove_weights`, by the result of `proof.expected_hashes`."""
        self.engine.reset_prefix_cache()
        return self._proved(expected, "the trainer's tensors")

    def _proved(self, sent: Any, what: str) -> str:
        self.proof = prove(self.engine.collective_rpc(cast("Any", compare), args=(sent,)), what)
        return str(self.proof["digest"])

    def proven(self) -> str:
        """Describe in one line what the last proof compared and what it did not."""
        return describe(self.proof) if self.proof else ""

    def sleep(self) -> None:
        if self.engine.vllm_config.model_config.enable_sleep_mode:
            self.engine.sleep(level=1)

    def wake(self) -> None:
        if self.engine.vllm_config.model_config.enable_sleep_mode:
            self.engine.wake_up()


def completion_of(output: Any, ids: list[int], request: Request) -> Completion:
    """Convert vLLM's output. One that vLLM aborted by itself is an error, not a text."""
    one = output.outputs[0]
    tokens = list(one.token_ids)
    reason = one.finish_reason
    error = None if reason in ("stop", "length") else f"vLLM ended the request: {reason}"
    return Completion(
        request.request_id,
        one.text,
        "error" if error else reason,
        prompt_token_ids=ids,
        token_ids=tokens,
        # One per position: the log-prob of the sampled token.
        logprobs=list(one.logprobs.logprobs) if one.logprobs is not None else None,
        prompt_tokens=len(ids),
        completion_tokens=len(tokens),
        error=error,
        extra={"cached_prompt_tokens": output.num_cached_tokens or 0},
    )


# --- memory


def free_cpu_memory() -> int:
    """Bytes free on the NUMA node that the engine binds to, which may be less than a share of the
    machine.
    """
    from vllm.utils.cpu_resource_utils import (
        get_allowed_cpu_list,
        get_memory_node_info,
        get_visible_memory_node,
    )

    node, visible = get_allowed_cpu_list()[0].numa_node, get_visible_memory_node()
    return int(get_memory_node_info(node if node in visible else visible[0]).available_memory)


def free_gpu_share() -> float:
    """The share of one GPU's memory that vLLM may take, given what other processes hold."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return round(GPU_SHARE * free / total, 3)
