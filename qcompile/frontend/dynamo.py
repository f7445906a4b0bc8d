"""The plugin for torch.fx: torch.compile(module, backend="qcompile", options={"recipe": ..., "calibration": ...}).

torch's entry point `torch_dynamo_backends` names `qcompile_backend`, so nothing has to be imported first.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch._guards
import torch.fx

from qcompile.errors import ModelError, RecipeError
from qcompile.frontend import dynamo_effects

_USE_NO_GRAD = "Run it under torch.no_grad(), and train the module itself"

Compiled = Callable[..., tuple[torch.Tensor, ...]]


def qcompile_backend(
    gm: torch.fx.GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Compiled:
    """Compile the graph that torch captured, and return what runs in its place.

    Every part of a module that torch captures by itself is compiled by itself. Calibration samples name the arguments
    of the compiled function as the user wrote them. A graph that writes into its inputs, or into buffers of the module,
    is refused: an artifact only returns outputs. So is one that draws random numbers, such as dropout in training mode.

    An artifact has no gradients. Outputs require them where those of the module would: under torch.no_grad() they never
    do; else parameters that require them are enough, in evaluation mode too, and `backward` raises a ModelError. It is
    not silently left out. An input of the user that requires gradients is refused before any work. (torch does not tell
    a backend whether the module is in training mode.)

    Args:
        gm: graph with the parameters and the user's tensors as placeholders.
        example_inputs: a value for each placeholder; sizes that torch made dynamic come as SymInt.
        options: keyword arguments of qcompile.compile, e.g. recipe, calibration, backend; others are refused.

    Raises:
        RecipeError: an option that qcompile.compile does not take.
        ModelError: the graph has no tensor inputs, writes into a given tensor, draws random numbers, is to have
            gradients of an input, or cannot be exported; later, where somebody asks for gradients of the outputs.
    """
    import qcompile

    settings = _checked(options or {}, inspect.signature(qcompile.compile).parameters)
    # What traces inside starts a trace of its own; left in the context of this one, it breaks the guards of the caller.
    with torch._guards.tracing(None):
        _refuse_effects(gm, example_inputs)
    _refuse_gradients(gm, example_inputs)
    module, positions = _closed_module(gm, example_inputs)
    examples = {name: example_inputs[position].detach() for name, position in positions.items()}
    with torch._guards.tracing(None):
        artifact = qcompile.compile(module, example_inputs=examples, **settings)

    def run(*arguments: Any) -> tuple[torch.Tensor, ...]:
        feed = {name: arguments[position].detach().cpu().numpy() for name, position in positions.items()}
        return tuple(torch.from_numpy(output) for output in artifact.run(feed).values())

    def differentiable(*arguments: Any) -> tuple[torch.Tensor, ...]:
        # torch gives Function.apply no types.
        outputs: tuple[torch.Tensor, ...] = _WithoutGradient.apply(run, *arguments)  # type: ignore[no-untyped-call]
        return outputs

    return differentiable


class _WithoutGradient(torch.autograd.Function):
    """run(*arguments), of which nobody gets a gradient: autograd marks the outputs as it does those of the module."""

    @staticmethod
    def forward(_context: Any, run: Compiled, *arguments: Any) -> tuple[torch.Tensor, ...]:
        """Return the outputs."""
        return run(*arguments)

    @staticmethod
    def backward(_context: Any, *_gradients: Any) -> Any:
        """Raise ModelError."""
        raise ModelError("the compiled module", "gradients are asked for, and an artifact has none", _USE_NO_GRAD)


def _checked(options: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """The options, refused where qcompile.compile does not take them or the backend sets them itself."""
    allowed = sorted(set(parameters) - {"model", "example_inputs"})
    for name in options:
        if name not in allowed:
            raise RecipeError(
                f"options[{name!r}]", "is not an option of the backend", f"Use one of {', '.join(allowed)}"
            )
    return dict(options)


def _refuse_effects(gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> None:
    """Raise ModelError where the graph changes a tensor that exists before it runs, or draws random numbers."""
    effects = dynamo_effects.find_effects(gm, example_inputs)
    if effects.write is not None:
        node, target = effects.write
        raise ModelError(
            _subject(node),
            f"it writes into {_written_name(gm, target)}, and what is compiled only returns outputs",
            "Compute a new tensor and return it, or keep it out of the compiled code with torch.compiler.disable",
        )
    if effects.random is not None:
        reason = "it draws random numbers, so no two runs agree, and nothing can be verified"
        mend = "Call module.eval() first: dropout draws in training mode. Pass other random tensors as inputs"
        raise ModelError(_subject(effects.random), reason, mend)


def _subject(node: torch.fx.Node) -> str:
    """The node, with the line of the user's code that it comes from."""
    lines = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines()]
    code = [line for line in lines if line.strip("^~ ") and not line.startswith("File ")]
    call = code[-1] if code else getattr(node.target, "__name__", node.target)
    return f"node {node.name} ({call})"


def _refuse_gradients(gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> None:
    """Raise ModelError for an input that the user wants the gradient of; one that the user's code computed may pass."""
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    for node, value in zip(placeholders, example_inputs, strict=True):
        source = _source(node)
        if not isinstance(value, torch.Tensor) or _is_lifted(value, source):
            continue
        if torch.is_grad_enabled() and value.requires_grad and value.is_leaf:
            name = _user_name(source or str(node.target), {}, _parameters(gm))
            raise ModelError(f"input {name}", "it requires a gradient, and an artifact has none", _USE_NO_GRAD)


def _written_name(gm: torch.fx.GraphModule, node: torch.fx.Node) -> str:
    """L['self']._buffers['n'] -> self.n; of an input, its name."""
    source = _source(node)
    if re.search(r"\._(?:buffers|parameters)\[", source):
        return re.sub(r"\._(?:buffers|parameters|modules)\['([^']+)'\]", r".\1", _unwrapped(source))
    return f"the input {_user_name(source or str(node.target), {}, _parameters(gm))}"


def _unwrapped(source: str) -> str:
    return re.sub(r"^[LG]\['(\w+)'\]", r"\1", source)


def _closed_module(
    gm: torch.fx.GraphModule, example_inputs: Sequence[Any]
) -> tuple[torch.fx.GraphModule, dict[str, int]]:
    """Graph module whose inputs are the user's tensors, and the place of each among the example inputs.

    torch lifts parameters, buffers and dynamic sizes to placeholders. Here parameters and buffers go back into the
    module, and a size is taken from the tensor that it belongs to.
    """
    graph = copy.deepcopy(gm.graph)
    root: dict[str, Any] = dict(gm.named_children())
    root.update(gm.named_parameters(recurse=False))
    root.update(gm.named_buffers(recurse=False))
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    sources = [node for node in gm.graph.nodes if node.op == "placeholder"]
    positions: dict[str, int] = {}
    parameters = _parameters(gm)
    tensors: dict[str, torch.fx.Node] = {}
    sizes: list[tuple[torch.fx.Node, str]] = []
    for position, (node, original, value) in enumerate(zip(placeholders, sources, example_inputs, strict=True)):
        source = _source(original)
        if not isinstance(value, torch.Tensor):
            sizes.append((node, source))
        elif _is_lifted(value, source):
            _put_back(graph, node, root, value)
        else:
            name = _user_name(source or node.target, positions, parameters)
            node.target = name  # the name of the argument; node.name would meet values that have that name already
            positions[name], tensors[source] = position, node
    if not positions:
        raise ModelError("the captured graph", "has no tensor inputs", "Compile a function of at least one tensor")
    for node, source in sizes:
        _take_size(graph, node, source, tensors)
    graph.lint()
    return torch.fx.GraphModule(root, graph), positions


def _source(node: torch.fx.Node) -> str:
    """Expression of the user's frame that a placeholder stands for, e.g. L['input_ids']; empty where torch has none."""
    argument = node.meta.get("grapharg")
    source = getattr(argument, "source", None)
    name = getattr(source, "name", "")
    return str(name() if callable(name) else name)


def _is_lifted(value: torch.Tensor, source: str) -> bool:
    """Whether a placeholder is a parameter or a buffer of the user's module."""
    return isinstance(value, torch.nn.Parameter) or "._buffers[" in source or "._parameters[" in source


def _parameters(gm: torch.fx.GraphModule) -> tuple[str, ...]:
    """Names of the positional arguments that torch captured as args[0], args[1], ...

    torch captures its own modules, nn.Linear and nn.Sequential, through a wrapper fn(*args, **kwargs), and keeps their
    class. Empty where the graph was not captured so.
    """
    for node in gm.graph.nodes:
        for path, kind in (node.meta.get("nn_module_stack") or {}).values():
            if path == "L['fn']" and isinstance(kind, type):
                _, *parameters = inspect.signature(getattr(kind, "forward")).parameters.values()  # noqa: B009
                return tuple(item.name for item in parameters if item.kind is not item.VAR_POSITIONAL)
    return ()


def _user_name(source: str, taken: Mapping[str, int], parameters: Sequence[str] = ()) -> str:
    """L['input_ids'] -> input_ids; of deeper expressions the letters and digits, numbered where they repeat.

    Args:
        source: expression of the captured frame.
        taken: names that are given already.
        parameters: what args[0], args[1], ... of the captured frame are called; see `_parameters`.
    """
    argument = re.fullmatch(r"L\['args'\]\[(\d+)\]", source)
    named = re.fullmatch(r"L(?:\['kwargs'\])?\['(\w+)'\]" if parameters else r"L\['(\w+)'\]", source)
    if argument and int(argument[1]) < len(parameters):
        name = parameters[int(argument[1])]
    elif named:
        name = named[1]
    else:
        name = re.sub(r"\W+", "_", source.removeprefix("L")).strip("_")
    return name if name not in taken else f"{name}_{len(taken)}"


def _put_back(graph: torch.fx.Graph, node: torch.fx.Node, root: dict[str, Any], value: torch.Tensor) -> None:
    """Replace the placeholder of a parameter or buffer by an attribute of the module."""
    name = str(node.target)
    root[name] = value
    with graph.inserting_before(node):
        attribute = graph.get_attr(name)
    node.replace_all_uses_with(attribute)
    graph.erase_node(node)


def _take_size(graph: torch.fx.Graph, node: torch.fx.Node, source: str, tensors: Mapping[str, torch.fx.Node]) -> None:
    """Replace the placeholder of a size, L['x'].size()[0], by the size of that tensor."""
    match = re.fullmatch(r"(.+)\.size\(\)\[(\d+)\]", source)
    tensor = tensors.get(match.group(1)) if match else None
    if node.users:
        if tensor is None or match is None:
            raise ModelError(
                source or str(node.target), "is a number that changes between calls", "Pass it as a tensor"
            )
        with graph.inserting_after(max((tensor, node), key=list(graph.nodes).index)):
            size = graph.call_function(torch.ops.aten.sym_size.int, (tensor, int(match.group(2))))
        node.replace_all_uses_with(size)
    graph.erase_node(node)
