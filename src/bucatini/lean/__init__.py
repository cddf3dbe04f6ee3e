"""The standard library's, for what a start imports: what is used of it here, without what the whole costs.

To type checkers they are the originals. ARCHITECTURE.md, Start-up time, has the figures.
"""
