"""Doors into programs that train: a module for each program that takes plugins. Each imports its program."""
