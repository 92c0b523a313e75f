"""Recipes, one YAML a method and data set."""
