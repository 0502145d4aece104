"""Concept discovery in diffusion models: from one picture of an unseen combination to more of it."""

__version__ = "0.1.0"
