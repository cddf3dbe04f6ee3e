"""Bucatini: rootless networking for namespaces and virtual machines."""

from __future__ import annotations

__version__ = "0.1.0"
