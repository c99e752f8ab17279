"""Plumbing: what a table is, how it is stored, how a stage runs, and where rollouts come from."""

__version__ = "0.1.0"
