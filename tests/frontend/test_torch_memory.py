"""The program that torch exported does not stay in memory: in a fresh process, where no other export keeps any."""

import subprocess
import sys
import textwrap

COUNT_PROGRAMS = """
    import gc
    import torch
    from qcompile.frontend import trace

    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4))
    traced = trace(module, example_inputs=torch.zeros(2, 3, 4))
    gc.collect()
    print(sum(issubclass(type(item), (torch.fx.GraphModule, torch.fx.Node)) for item in gc.get_objects()))
    assert traced.graph.initializers
"""


def test_the_exported_program_goes():
    program = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(COUNT_PROGRAMS)]
    assert int(subprocess.check_output(program)) == 0
