"""Pretrained, differentiable, certified matrix functions for PyTorch."""

__version__ = "0.1.0"
