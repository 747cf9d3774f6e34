"""Attacks on the sandbox: each is a script, and what must hold of its run. ``suite.py`` plays them all."""
