"""Weights: files, formats, and what ships with the package."""
