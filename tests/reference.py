"""Textbook formulas in NumPy float64. Imports neither jax nor the package, so that it can be wrong only by itself."""

import math

import numpy as np
