"""Prediction: a photo in, its classes, boxes or mask out."""
