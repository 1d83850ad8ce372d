"""The benchmark: ``python -m neural_expm.bench``.

Workloads (``workloads``) are timed against the classical algorithm in interleaved pairs (``measure``), their errors are
gated against a truth of higher precision (``truth``, ``accuracy``), and the figures go to a table, a JSON file, a plot
and the README (``tables``, ``plot``, ``readme``).
"""
