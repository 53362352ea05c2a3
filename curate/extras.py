"""Optional packages, the extras that bring them, and how to install an extra.

The package on the registry is `curate-reasoning`: `curate` there is another project.
"""

from __future__ import annotations

from importlib.util import find_spec

from curate.errors import UsageError

DISTRIBUTION = "curate-reasoning"

# Package to extra. What a command needs shows when it is imported.
EXTRAS = {
    "torch": "train",
    "transformers": "train",
    "peft": "train",
    "safetensors": "train",
    "accelerate": "train",
    "vllm": "vllm",
    "openai": "openai",
    "httpx": "openai",
    "datasets": "hub",
    "ray": "ray",
    "obstore": "s3",
    "fsspec": "s3",
    "huggingface_hub": "hub",
    "reasoning_gym": "quickstart",
    "gguf": "quickstart",
}


def install(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def missing_packages(*packages: str) -> list[str]:
    """Return the packages that are not installed, without importing any."""
    return [name for name in packages if find_spec(name) is None]


def need(what: str, extra: str, *packages: str) -> None:
    """UsageError, with the command to install them, if one of the packages is not installed."""
    if names := missing_packages(*packages):
        raise UsageError(f"{what} needs {' and '.join(names)}: {install(extra)}")
