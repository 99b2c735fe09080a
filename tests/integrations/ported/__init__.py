"""Training steps as four kinds of codebase write them, in plain optax and with this package side by
side.
"""
