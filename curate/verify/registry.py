"""Built-in verifiers by name. To add one: a file, and a line here (or an entry point)."""

from __future__ import annotations

from functools import cache

from curate.errors import UsageError
from curate.registry import resolve
from curate.verify.base import Verifier

REGISTRY = {
    "math": "curate.verify.math.verifier:MathVerifier",
    "math-strict": "curate.verify.math.variants:StrictMathVerifier",
    "math-rounded": "curate.verify.math.variants:RoundedMathVerifier",
    "choice": "curate.verify.choice:ChoiceVerifier",
    "code": "curate.verify.code.verifier:CodeVerifier",
    "exact": "curate.verify.text:ExactVerifier",
    "text": "curate.verify.text:TextVerifier",
    "procedural": "curate.verify.procedural:ProceduralVerifier",
}


@cache
def verifier_named(name: str) -> Verifier:
    """Return the verifier of this name. Raises `UsageError` if it is unknown or unloadable."""
    resolved = resolve("verifier", name, REGISTRY)
    try:
        verifier = resolved() if isinstance(resolved, type) else resolved
    except Exception as error:  # whatever the user's own class raises
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(f"cannot load the verifier '{name}': {reason}") from error
    if not isinstance(verifier, Verifier):
        raise UsageError(
            f"the verifier '{name}' is not a curate.verify.base.Verifier: subclass that class"
        )
    return verifier


def versions() -> dict[str, str]:
    """Return name -> version of the built-in verifiers."""
    return {name: verifier_named(name).version for name in REGISTRY}
