"""Glossaries: patches that make a translation model use a term in every sentence."""
