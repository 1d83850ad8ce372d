"""Kernels for CUDA devices: ``route`` says when they answer, ``operators`` what torch knows of them."""
