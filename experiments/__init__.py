"""The experiments: one file a figure or table, run with ``python -m experiments``.

An experiment is a file ``experiments/<paper>/<name>.py`` with one function under
:func:`experiments.registry.experiment`. It receives a :class:`experiments.context.Context`,
which carries its scale, seed and key and takes its figures, tables and claims.
"""
