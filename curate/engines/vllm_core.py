"""The part of the vLLM engine that runs in the child process: one `LLMEngine`, fed and stepped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, cast

from curate.engines.base import model_length
from curate.engines.child import Done, Job
from curate.engines.vllm_transfer import PROOF_BYTES, hash_of
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
        except Exception as error:  # vLLM raises a dozen kinds; each is about this request only
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
        return self._proved(compare_weights, directory, f"'{directory}'")

    def transfer(self, method: str, *args: Any) -> None:
        """Make a call of vLLM's weight transfer in every worker (see `vllm_transfer.Children`)."""
        self.engine.collective_rpc(method, args=args)

    def prove_transfer(self, expected: dict[str, dict[str, Any]]) -> str:
        """Like `prove_weights`, by the hashes of `vllm_transfer.expected_hashes`."""
        self.engine.reset_prefix_cache()
        return self._proved(compare_hashes, expected, "the trainer's tensors")

    def _proved(self, compare: Any, argument: Any, what: str) -> str:
        proofs = self.engine.collective_rpc(cast("Any", compare), args=(argument,))
        wrong = [name for proof in proofs for name in proof["wrong"]]
        if wrong:
            raise RuntimeError(
                f"{len(wrong)} tensors of the engine differ from {what}, the first is {wrong[0]}"
            )
        if any(proof["matrices"] == 0 for proof in proofs):
            raise RuntimeError(
                "no weight matrix could be read back from the engine, so nothing proves the update"
            )
        return "+".join(proof["digest"] for proof in proofs)

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


# --- memory and proof


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


FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def read_back(worker: Any, names: Container[str]) -> Iterator[tuple[str, list[str], Any]]:
    """The tensors of a worker's model: name, the names of its parts in a checkpoint, and the
    parameter.

    vLLM fuses tensors; the two common fusions are taken apart. Tensors with a part that is not in
    `known` are left out. A model above `PROOF_BYTES` is sampled evenly.
    """
    parameters = list(worker.get_model().named_parameters())
    size = sum(p.numel() * p.element_size() for _, p in parameters)
    every = max(1, -(-size // PROOF_BYTES))
    for name, parameter in parameters[::-1][::every]:
        stem = name.replace(".base_layer", "")
        fused = next((key for key in FUSED if f".{key}." in stem), None)
        parts = [stem.replace(fused, part) for part in FUSED[fused]] if fused else [stem]
        if all(part in names for part in parts):
            yield name, parts, parameter


def compare_weights(worker: Any, directory: str) -> dict[str, Any]:
    """Read tensors back from a worker's model and compare them with the files, bit for bit in the
    engine's dtype.

    If a tensor is split over ranks, this rank's part is compared. One that still has another shape
    (padded, packed, quantised) is not counted. Returns `digest` of what was read, `wrong` names,
    and how many `matrices` were equal.
    """
    import torch
    from safetensors import safe_open
    from vllm.distributed import (
        get_tensor_model_parallel_rank,
        get_tensor_model_parallel_world_size,
    )

    files = [safe_open(path, "pt") for path in sorted(Path(directory).glob("*.safetensors"))]
    where = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (not a dict)
    rank, ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
    proof = Proof()
    for name, parts, parameter in read_back(worker, where):
        tensors = [where[part].get_tensor(part) for part in parts]
        if ranks > 1:
            if len(parts) > 1:
                continue
            tensors = [_shard(tensors[0], parameter.shape, rank, ranks)]
        expected = torch.cat(tensors).to(parameter.dtype)
        held = unpadded(parameter, expected.shape)
        if held.shape == expected.shape:
            proof.add(name, held, torch.equal(held, expected))
    return proof.result()


def compare_hashes(worker: Any, expected: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Like `compare_weights`, against hashes of tensors in the engine's dtype."""
    from vllm.distributed import (
        get_tensor_model_parallel_rank,
        get_tensor_model_parallel_world_size,
    )

    rank, ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
    proof = Proof()
    for name, parts, parameter in read_back(worker, expected):
        wanted = [expected[part] for part in parts]
        rows = [w["shape"][0] for w in wanted]
        if ranks == 1:
            held = unpadded(parameter, (sum(rows), *wanted[0]["shape"][1:]))
            if held.shape == (sum(rows), *wanted[0]["shape"][1:]):
                pieces = zip(held.split(rows), wanted, strict=True)
                proof.add(name, held, all(hash_of(piece) == w["hashes"][""] for piece, w in pieces))
        elif (
            len(parts) == 1
            and (key := _part(wanted[0]["shape"], parameter.shape, rank, ranks)) is not None
        ):
            held = parameter.detach().cpu()
            proof.add(name, held, hash_of(held) == wanted[0]["hashes"].get(key))
    return proof.result()


def _part(whole: Any, shape: Any, rank: int, ranks: int) -> str | None:
    """The part of a tensor that this rank holds, as `expected_hashes` names it; None if its shape
    fits none.
    """
    if tuple(whole) == tuple(shape):
        return ""
    for dim, (a, b) in enumerate(zip(whole, shape)):
        if a == b * ranks:
            return f"{dim}:{rank}"
    return None


def unpadded(parameter: Any, shape: Any) -> Any:
    """A parameter on the CPU, without the rows that pad the vocabulary beyond `shape`."""
    held = parameter.detach().cpu()
    if held.ndim == 2 and held.shape[0] > shape[0] and held.shape[1:] == tuple(shape[1:]):
        held = held[: shape[0]]
    return held


class Proof:
    """Result of reading tensors back."""

    def __init__(self) -> None:
        self.digest, self.matrices = hashlib.sha256(), 0
        self.wrong: list[str] = []

    def add(self, name: str, held: Any, equal: bool) -> None:
        import torch

        if not equal:
            self.wrong.append(name)
        self.matrices += held.ndim >= 2
        self.digest.update(name.encode() + held.contiguous().view(torch.uint8).numpy().tobytes())

    def result(self) -> dict[str, Any]:
        return {
            "digest": self.digest.hexdigest()[:16],
            "wrong": self.wrong,
            "matrices": self.matrices,
        }


def _shard(tensor: Any, shape: Any, rank: int, ranks: int) -> Any:
    """This rank's part of a tensor that tensor parallelism splits along one dimension."""
    for dim, (whole, part) in enumerate(zip(tensor.shape, shape)):
        if whole == part * ranks:
            return tensor.narrow(dim, rank * part, part)
    return tensor
