"""Peers that come with the extra of their own."""

from __future__ import annotations

import importlib


def missing(*modules: str) -> str:
    """Why one of these modules cannot be imported; empty where all can."""
    try:
        for name in modules:
            importlib.import_module(name)
    except ImportError as error:
        return f"{error}; pip install '.[peers]'"
    return ""
