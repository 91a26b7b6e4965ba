"""Arithmetic on intervals of numbers, each a pair (start, end)."""

from intervals.merge import covered, merge

__all__ = ["covered", "merge"]
