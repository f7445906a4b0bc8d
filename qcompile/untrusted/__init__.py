"""What is asked of a model from anywhere before anything else reads it: it is what it says, and reading it ends.

Nothing here imports onnx_ir or a runtime: `python -m qcompile.untrusted` starts in a fraction of a second.
"""
