"""Rewrites of the graph, one to a file. Each is a frozen dataclass on `qcompile.contract.Pass`."""
