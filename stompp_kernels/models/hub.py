"""What transformers loads by a name: from a folder, from its cache, or from the hub, if that answers."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

PROBE_SECONDS = 3.0  # transformers itself tries for most of a minute


def from_hub(kind: Any, name: str | os.PathLike[str], argument: str) -> Any:
    """Calls ``kind.from_pretrained(name)``, and fails at once where it would need a hub that does not answer.

    A name is looked for in the cache first, so that nothing is asked of the hub for what is there. No code that comes
    with a model is run.

    Args:
        kind: ``transformers.AutoModel``, ``AutoTokenizer`` or the like.
        name: of a folder, or of a model on the hub.
        argument: the name of the argument that ``name`` is, for errors.

    Raises:
        ValueError: ``name`` is the path of no folder, transformers cannot load what is there, or the hub is needed and
            is switched off (by HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE) or does not answer.
    """
    text = os.fspath(name)
    if Path(text).is_dir():
        return _load(kind, text, argument, local_files_only=True)
    if isinstance(name, os.PathLike) or text.startswith((".", "~", os.sep)) or text.count("/") > 1:
        raise ValueError(
            f"{argument} must be a folder or a model's name that transformers can load, got {text!r}: no such folder"
        )
    try:
        return _load(kind, text, argument, local_files_only=True)
    except ValueError as error:
        problem = _why_no_hub()
        if problem:
            raise ValueError(
                f"{argument} must be a folder or the name of a model that is in the cache or on the hub, got {text!r}: "
                f"it is no folder and not in the cache, and {problem}"
            ) from error
    return _load(kind, text, argument)


def _load(kind: Any, text: str, argument: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(text, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{argument} must be a folder or a model's name that transformers can load, got {text!r}: {reason}"
        ) from error


def _why_no_hub() -> str:
    """Says why nothing can be loaded from the hub; "" if it answers."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or os.environ.get("TRANSFORMERS_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        return "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE keeps it from the hub"
    answers: list[bool] = []
    # In a thread, for no timeout covers the resolver of names.
    probe = threading.Thread(target=_probe, args=(constants.ENDPOINT, answers), daemon=True)
    probe.start()
    probe.join(PROBE_SECONDS)
    return "" if answers else f"the hub at {constants.ENDPOINT} does not answer"


def _probe(address: str, answers: list[bool]) -> None:
    from huggingface_hub.utils import get_session

    try:
        get_session().head(address, timeout=PROBE_SECONDS)
    except Exception:  # of whichever client the hub's library uses; no answer is all that counts
        return
    answers.append(True)
