"""Bucatini: rootless networking for namespaces and virtual machines."""

__version__ = "0.1.0"
