"""Second-order optimizers for PyTorch, and the study that compares them.

The optimizers are in :mod:`adaptive_opt.optim` and need only torch. The study is a Kedro project:
does second-order information for step size adaptation make neural networks converge faster?
"""

__version__ = "0.1.0"
