"""One engine at a time, shared by consecutive jobs: weights of the same architecture go into the
running engine.

Starting vLLM takes longer than many small jobs; loading new weights into it takes less than a
second.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from curate.engines.base import Engine, EngineConfig
from curate.engines.pool import PooledEngine
from curate.engines.registry import LOCAL, create, settle
from curate.errors import CurateError
from curate.progress import waiting

# Keys of config.json that do not affect the shape of the model.
_VOLATILE = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"}


class SharedEngine:
    """Holds at most one open engine. `get` returns it with the given weights; `close` ends it."""

    def __init__(self, say: Callable[[str], None] = lambda text: None) -> None:
        self._say = say
        self._engine: Any = None
        self._settings: str = ""
        self._shape: str = ""
        self._hash: str = ""

    def get(self, config: Any, path: Path, weights: str) -> Any:
        """The engine of `config` with the weights in `path`, whose hash is `weights`; started if
        needed.
        """
        config = settle(config, path)
        settings, shape = config.model_dump_json(), architecture(path)
        if self._engine is not None and (settings, shape) == (self._settings, self._shape):
            if weights != self._hash:
                try:
                    self._engine.update_weights(path)
                    self._hash = weights
                    return self._engine
                except (CurateError, NotImplementedError) as error:
                    self._say(
                        f"the running engine cannot load the new weights ({error}); starting "
                        "another"
                    )
            else:
                return self._engine
        self.close()
        self._engine = self._open(config, path)
        self._settings, self._shape, self._hash = settings, shape, weights
        return self._engine

    def _open(self, config: EngineConfig, path: Path) -> Engine:
        if config.name not in LOCAL:
            return create(config, path)
        with waiting(f"starting {config.name}: {shown_name(path)} in {config.dtype}"):
            engine = create(config, path)
            if isinstance(engine, PooledEngine):
                engine.wait_ready()
            return engine

    def changed(self, weights: str = "") -> None:
        """Note that a trainer put other weights into the engine, so that the next `get` loads its
        own.
        """
        self._hash = weights

    def close(self) -> None:
        if self._engine is not None:
            engine, self._engine = self._engine, None
            engine.close()


def shown_name(path: Path) -> str:
    """A short name of a model directory: the Hub id of a snapshot, else its last two parts."""
    if path.parent.name == "snapshots":
        return path.parent.parent.name.removeprefix("models--").replace("--", "/")
    return "/".join(path.parts[-2:])


def architecture(path: Path) -> str:
    """Hash of what two models must share to swap weights: the shape in config.json, and the
    tokenizer.
    """
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return str(path)
    shape = {k: v for k, v in config.items() if k not in _VOLATILE}
    digest = hashlib.blake2b(json.dumps(shape, sort_keys=True).encode(), digest_size=16)
    tokenizer = path / "tokenizer.json"
    if tokenizer.exists():
        # Vocabulary and merges only: a checkpoint may store padding settings differently.
        model = json.loads(tokenizer.read_text(encoding="utf-8")).get("model")
        digest.update(json.dumps(model, sort_keys=True).encode())
    return digest.hexdigest()
