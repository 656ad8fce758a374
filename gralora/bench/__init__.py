"""Measures adapters on this machine: ``gralora bench layer``, ``gralora bench kernels``.

`command` reads the options and runs a `suite`; `harness` takes the times; `report` and `plots` show
the results. Nothing else of the package imports this one.
"""
