"""adaptive_opt: does second-order step size adaptation make training converge faster?

The optimizers live in :mod:`adaptive_opt.optim` and need torch alone; the study that
compares them is a Kedro project around the same package.
"""

__version__ = "0.1.0"
