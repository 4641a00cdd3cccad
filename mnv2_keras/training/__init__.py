"""Recipes and losses."""
