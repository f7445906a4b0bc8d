"""Reference models for tests, benchmarks and the demo: small generated ones and loaders of real ones.

Every loader takes its files from an installed Python package; nothing is downloaded when it runs. One file per model;
each raises MissingDependencyError with the pip command when its package is not installed.
"""
