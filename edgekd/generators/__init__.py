"""Generative Program -> artefact with a cache of keys and values, and how to run it: one file per runtime."""
