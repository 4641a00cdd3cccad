"""Weights that come from elsewhere than a TF-Slim checkpoint, read into plain arrays."""
