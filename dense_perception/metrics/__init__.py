"""Metrics over arrays."""
