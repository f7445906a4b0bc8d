"""The report of a compilation: what was quantized, what was not and why, what it cost and what it won."""

from qcompile.report.data import ActivationRange, LayerReport, PassReport, Report

__all__ = ["ActivationRange", "LayerReport", "PassReport", "Report"]
