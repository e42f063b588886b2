"""A German-English corpus and edit requests, generated without any download."""

from .corpus import embedded_corpus
from .requests import embedded_requests

__all__ = ["embedded_corpus", "embedded_requests"]
