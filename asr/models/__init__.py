"""The models in the package, and what a model's file is."""
