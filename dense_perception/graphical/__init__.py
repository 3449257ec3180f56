"""Inference over pixels and superpixels."""
