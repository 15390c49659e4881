"""Subjects, one a module: `make` leaves mutated input in a folder and returns the command lines to run on it."""
