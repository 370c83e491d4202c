"""Nearest neighbors, exact and approximate, without an N x N matrix: the one room that knows faiss."""

from .nearest import Neighbors, search

__all__ = [
    "Neighbors",
    "search",
]
