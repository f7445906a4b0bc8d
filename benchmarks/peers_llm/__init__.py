"""Peers for language models; each module is run by the interpreter of its peer's own virtual environment.

Only `protocol` is shared: no module of this package may import qcompile, which those environments do not have.
"""
