"""Built-in verifiers by name. To add one: a file, and a line here (or an entry point)."""

from __future__ import annotations

from functools import cache

from curate.errors import UsageError
from curate.registry import resolve
from curate.verify.base import Verifier

REGISTRY = {
    "math": "curate.verify.math.verifier:MathVerifier",
    "choice": "curate.verify.choice:ChoiceVerifier",
    "code": "curate.verify.code.verifier:CodeVerifier",
    "exact": "curate.verify.text:ExactVerifier",
    "text": "curate.verify.text:TextVerifier",
    "procedural": "curate.verify.procedural:ProceduralVerifier",
}


@cache
def verifier_named(name: str) -> Verifier:
    """Return the verifier of this name. Raises `UsageError` if there is none."""
    resolved = resolve("verifier", name, REGISTRY)
    verifier = resolved() if isinstance(resolved, type) else resolved
    if not isinstance(verifier, Verifier):
        raise UsageError(
            f"the verifier '{name}' is not a curate.verify.base.Verifier: subclass that class"
        )
    return verifier


def versions() -> dict[str, str]:
    """Return name -> version of the built-in verifiers."""
    return {name: verifier_named(name).version for name in REGISTRY}
