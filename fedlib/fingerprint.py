"""What decides a result, in a few words and numbers: a checkpoint goes on only with what it was made of.

Data and partitions are hashed. A method's functions are told apart by their syntax trees. A network is asked what it
computes: numbers that another processor gives to rounding, and another network does not.
"""

from __future__ import annotations

import ast
import copy
import dis
import functools
import hashlib
import itertools
import linecache
import re
import sys
import sysconfig
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedlib.data import Data, prepare
from fedlib.dropout import own_generator

IMAGES = 2  # that a network is asked about, each twice in a row, as methods that look at two views want them
NOISE = 0.05  # on the weights it is asked with: at zero, many a branch computes nothing
SHORT = 12  # characters of a hash that are kept
_of_data: weakref.WeakKeyDictionary[Data, tuple] = weakref.WeakKeyDictionary()


def of_data(data: Data) -> str:
    """A hash of all that clients learn from: images, labels, their mean and standard deviation, the number of classes.

    Validation images count too.

    Made once for each `Data`, and again after its tensors have been changed in place by torch.
    """
    tensors = [data.x_train, data.y_train, data.x_test, data.y_test]
    tensors += [t for t in (data.x_val, data.y_val) if t is not None]
    versions = tuple(t._version for t in tensors)
    if _of_data.get(data, (None,))[0] != versions:
        rest = repr((data.mean, data.std, data.num_classes))
        _of_data[data] = versions, _short(*map(of_tensor, tensors), rest)
    return _of_data[data][1]


def of_tensor(tensor: Tensor | np.ndarray) -> str:
    """A hash of dtype, shape and values; images in the order in which they lie in memory, which saves a copy."""
    t = torch.as_tensor(tensor).detach().cpu()
    rows = (t.permute(0, 2, 3, 1) if t.dim() == 4 else t).contiguous()
    return _short(f"{t.dtype} {tuple(t.shape)}", rows.view(-1).view(torch.uint8).numpy() if rows.numel() else b"")


def of_parts(parts: Iterable[np.ndarray] | None) -> str | None:
    """A hash of a partition."""
    return None if parts is None else _short(*(piece for part in parts for piece in (part, b"|")))


def of_functions(thing: Any, by_name: bool = False) -> str:
    """A hash of what the functions in a thing do: an :class:`fedlib.algorithms.Algorithm`, a function, a dict of them.

    By their syntax trees, without comments, docstrings and layout, with their defaults, with what they close over and
    with the globals that they use; what belongs to Python or to an installed library goes by its name. With
    ``by_name``, fedlib's own functions do too: the hash then outlives a change of its code.
    """
    return _short("\n".join(_described(thing, _Seen(by_name))))


def of_weights(rows: Iterable[Tensor]) -> Tensor:
    """(S, 2), of S tensors their norm and their product with a fixed random one: equal tensors have equal numbers."""
    told = []
    for row in rows:  # one after another, since a sweep has many and this makes each larger
        w = row.detach().flatten().cpu().double()
        ruler = torch.randn(len(w), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        told.append(torch.stack([w.norm(), w @ ruler]))
    return torch.stack(told)


def of_network(
    net: nn.Module, loss: Callable[..., Tensor], data: Data, normalisation: tuple | None = None
) -> dict[str, Tensor]:
    """What a network computes on the CPU, in training, on a few images of the data and with weights a little off.

    Args:
        net: of which a copy is asked.
        loss: ``loss(net, x, y, counts) -> scalar``.
        normalisation: (mean, std) of the images, or None.

    Returns:
        ``"outputs"`` (B, ...), ``"loss"`` (1,), of each parameter's gradient norm and product (:func:`of_weights`), and
        ``"evaluation"`` (B, ...), the outputs in evaluation afterwards, which know the momentum of batch statistics.
    """
    some = torch.linspace(0, len(data.x_train) - 1, IMAGES).long().repeat_interleave(2).to(data.x_train.device)
    x, y = data.x_train[some].cpu(), data.y_train[some].cpu()
    with own_generator(0):
        net = copy.deepcopy(net).cpu().train()
        parameters = list(net.parameters())
        with torch.no_grad():
            for p in parameters:
                p.add_(NOISE * torch.randn(p.shape).to(p.dtype))
        x = prepare(x, *(normalisation or ()), dtype=parameters[0].dtype)
        outputs = net(x).detach()
        value = loss(net, x, y, torch.ones(data.num_classes, dtype=parameters[0].dtype))
        learning = [p for p in parameters if p.requires_grad]
        gradients = torch.autograd.grad(value, learning, allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            evaluation = net.eval()(x)
    told = {"outputs": outputs.flatten(1), "evaluation": evaluation.flatten(1)}
    return told | {"loss": value.detach().reshape(1), "gradients": of_weights(gradients)}


def of_text(*pieces: str) -> str:
    """A hash of texts."""
    return _short(*(f"{len(piece)} {piece}" for piece in pieces))


def tree(text: str) -> str:
    """What Python runs of a module: its syntax tree, without comments, layout and docstrings."""
    return ast.unparse(_without_docstrings(ast.parse(text)))  # a dump differs between versions of Python


def of_numbers(net: nn.Module) -> str:
    """A hash of the fractions that the modules of a network hold, such as an eps too small to be seen in an output."""
    found = {f"{name}.{key}": value for name, module in net.named_modules() for key, value in vars(module).items()}
    return _short(repr(sorted((key, value) for key, value in found.items() if isinstance(value, float))))


def differ(theirs: Tensor, ours: Tensor, tolerance: float = 1e-3) -> bool:
    """Whether two answers differ by more than rounding: by ``tolerance`` of the larger, as vectors."""
    if theirs.shape != ours.shape:
        return True
    a, b = (t.double().nan_to_num() for t in (theirs, ours))
    return bool((a - b).norm() > tolerance * max(a.norm(), b.norm()))


def _short(*pieces: Any) -> str:
    h = hashlib.sha256()
    for piece in pieces:
        h.update(piece.encode() if isinstance(piece, str) else memoryview(piece).cast("B") if len(piece) else b"")
    return h.hexdigest()[:SHORT]


# --- functions ---


class _Seen(dict[int, tuple[int, Any]]):
    """Things that were met before, by id: their number, and themselves, so that no other gets the same id."""

    def __init__(self, by_name: bool):
        super().__init__()
        self.by_name = by_name


def _described(thing: Any, seen: _Seen) -> Iterator[str]:
    """A thing in words that say what it does; parts of it that were met before go by their number."""
    if isinstance(thing, (type(None), bool, int, float, complex, str, bytes, np.generic, torch.dtype, torch.device)):
        yield f"{type(thing).__name__} {thing!r}"
    elif id(thing) in seen:
        yield f"again {seen[id(thing)][0]}"
    elif isinstance(thing, Tensor) or isinstance(thing, np.ndarray) and thing.dtype.kind != "O":
        yield of_tensor(thing)
    elif isinstance(thing, Data):
        yield of_data(thing)
    else:
        seen[id(thing)] = len(seen), thing
        yield from _of_object(thing, seen)


def _of_object(thing: Any, seen: _Seen) -> Iterator[str]:
    parts: Iterable[Any]
    if isinstance(thing, Mapping):
        name, parts = "mapping", itertools.chain.from_iterable(thing.items())
    elif isinstance(thing, Set):
        name, parts = "set", sorted(thing, key=repr)
    elif isinstance(thing, Sequence):
        name, parts = "sequence", thing
    elif isinstance(thing, functools.partial):
        name, parts = "partial", (thing.func, thing.args, thing.keywords)
    elif isinstance(thing, types.MethodType):
        name, parts = "method", (thing.__func__, thing.__self__)
    elif _installed(thing, seen.by_name):
        # a module by its name, since where it lies differs from machine to machine
        own = thing.__name__ if isinstance(thing, types.ModuleType) else getattr(thing, "__qualname__", thing)
        name, parts = f"{getattr(thing, '__module__', '')}.{own}", ()
    elif isinstance(thing, types.FunctionType):
        name, parts = _tree(thing.__code__), _used(thing)
    elif isinstance(thing, type):
        name, parts = thing.__qualname__, [f for f in vars(thing).values() if isinstance(f, types.FunctionType)]
    else:
        name, parts = "object", (type(thing), _state(thing))
    yield name
    for part in parts:
        yield from _described(part, seen)
    yield "end"


def _state(thing: Any) -> Any:
    """What an object holds; of one without attributes, such as a path or a fraction, what a copy is made of."""
    if hasattr(thing, "__dict__"):
        return vars(thing)
    try:
        return list(thing.__reduce_ex__(2)[1:3])
    except TypeError:  # it cannot be copied either
        return re.sub(r" at 0x[0-9a-f]+", "", repr(thing))


def _installed(thing: Any, by_name: bool = False) -> bool:
    """Whether a thing goes by its name: it belongs to Python, to an installed library or, ``by_name``, to fedlib."""
    if isinstance(thing, (types.ModuleType, types.BuiltinFunctionType, np.ufunc)):
        return True
    if not isinstance(thing, (types.FunctionType, type)):
        return False
    if str(thing.__module__).partition(".")[0] == "fedlib":
        return by_name and "<locals>" not in thing.__qualname__
    if isinstance(thing, types.FunctionType):
        return thing.__code__.co_filename.startswith(_libraries())
    home = sys.modules.get(thing.__module__)
    if home is None or thing.__module__ == "__main__":
        return False
    return (getattr(home, "__file__", None) or _libraries()[0]).startswith(_libraries())  # no file: it is built in


@functools.cache
def _libraries() -> tuple[str, ...]:
    return tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))


def _used(function: types.FunctionType) -> Iterator[Any]:
    """What a function needs beside its arguments: defaults, what it closes over, globals; not how they are called."""
    yield function.__defaults__
    yield function.__kwdefaults__
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield name
        try:
            yield cell.cell_contents
        except ValueError:  # a cell that is not filled yet
            yield "empty"
    for name in sorted(set(_names(function.__code__))):
        if name in function.__globals__:
            yield name
            yield function.__globals__[name]


def _names(code: types.CodeType) -> Iterator[str]:
    """The names that code, and the code inside it, looks up among the globals; those of attributes are none of them."""
    for step in dis.get_instructions(code):
        if "GLOBAL" in step.opname or step.opname == "LOAD_NAME":  # the latter in the body of a class
            yield step.argval
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _names(inner)


def _tree(code: types.CodeType) -> str:
    """A function's source without comments, docstrings and layout; its bytecode where there is no source."""
    linecache.checkcache(code.co_filename)
    trees = _functions("".join(linecache.getlines(code.co_filename))).get((code.co_name, code.co_firstlineno), [])
    # Two functions of one name that begin on one line cannot be told apart by their place.
    return trees[0] if len(trees) == 1 else "\n".join([*trees, _bytes_of(code)])


@functools.lru_cache(maxsize=32)
def _functions(source: str) -> dict[tuple[str, int], list[str]]:
    """The functions of a file, by name and first line: what is left of them without comments and docstrings."""
    found: dict[tuple[str, int], list[str]] = {}
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return found
    for node in ast.walk(_without_docstrings(tree)):
        if isinstance(node, ast.Lambda):
            found.setdefault(("<lambda>", node.lineno), []).append(ast.unparse(node))
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            found.setdefault((node.name, first), []).append(ast.unparse(node))
    return found


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _bytes_of(code: types.CodeType) -> str:
    constants = [_bytes_of(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {constants} {code.co_names}"
