"""A GPU that is not there: tensors that say they lie on a device, and hold CPU values.

What fedlib does on it is right to the bit where it is right on a CPU, so what is looked at is how: it counts kernels
(launches) and the places where the host waits for the device, refuses to mix devices, and raises in a recording what
would break a CUDA graph. It has neither an allocator nor streams nor cuDNN.
"""

import contextlib
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from fedlib import accelerator, cohort

KIND = "emulated"
FEDLIB = str(Path(cohort.__file__).parent)
VIEWS = {
    "view", "_unsafe_view", "expand", "permute", "transpose", "t", "select", "slice", "unsqueeze", "squeeze", "detach",
    "alias", "as_strided", "split", "split_with_sizes", "unbind", "diagonal", "_reshape_alias", "unfold", "lift_fresh",
    "is_same_size", "sym_size", "stride", "size",
}  # fmt: skip
# What hands a value of the device to the host.
ASKS = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "equal", "is_nonzero"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


@dataclass
class Log:
    """What the device has seen: ``waits`` and ``launches`` by operation, waits with the line of fedlib that made them.

    ``forbid`` is "waiting" where the host must not wait, "recording" where a graph is recorded.
    """

    launches: Counter = field(default_factory=Counter)
    waits: Counter = field(default_factory=Counter)
    forbid: str = ""
    recordings: int = 0
    replays: int = 0
    memory: int = 80_000_000_000
    bf16: bool = True

    def wait(self, what):
        self.waits[what, where()] += 1
        if self.forbid:
            raise RuntimeError(f"called a synchronizing operation ({what}) while {self.forbid} at {where()}")

    def clear(self):
        self.launches.clear()
        self.waits.clear()


LOG = Log()


def where():
    """The innermost line of fedlib."""
    lines = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_stack() if f.filename.startswith(FEDLIB)]
    return lines[-1] if lines else "elsewhere"


class There(torch.Tensor):
    """A tensor on the device; ``here`` has its values."""

    @staticmethod
    def __new__(cls, here):
        made = torch.Tensor._make_wrapper_subclass(
            cls, here.size(), strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype,
            device=f"{KIND}:0",
        )  # fmt: skip
        made.here = here
        return made

    def __repr__(self):
        return f"There({self.here})"

    def tolist(self):
        LOG.wait("tolist")
        return self.here.tolist()

    def untyped_storage(self):
        return self.here.untyped_storage()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return dispatched(function, args, kwargs or {})


class Everywhere(TorchDispatchMode):
    """Operations that make tensors say where, and those on CPU tensors may move them."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return dispatched(function, args, kwargs or {})


def here(value):
    return value.here if isinstance(value, There) else value


def dispatched(function, args, kwargs):
    """Do an operation of torch on the values; say what a GPU would have done."""
    name = function._schema.name.split("::")[1]
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [leaf for leaf in leaves if isinstance(leaf, There)]
    asked = kwargs.get("device")
    target = asked is not None and torch.device(asked).type == KIND
    given = kwargs | ({} if asked is None else {"device": torch.device("cpu")})
    if "pin_memory" in given:
        given["pin_memory"] = None
    if name in ("_to_copy", "copy_"):
        return copied(function, name, args, given, target, asked)
    if there:
        look(name, args, kwargs, leaves)
    result = function(*tree_map(here, args), **tree_map(here, given))
    if not (target or there and asked is None):
        return result
    if name not in VIEWS:
        LOG.launches[name] += 1
    known = {id(one.here): one for one in there}  # what is changed in place stays the same tensor

    def wrapped(one):
        return (known[id(one)] if id(one) in known else There(one)) if isinstance(one, torch.Tensor) else one

    return tree_map(wrapped, result)


def copied(function, name, args, given, target, asked):
    source, own = (args[1], args[0]) if name == "copy_" else (args[0], None)
    after = isinstance(own, There) if own is not None else target or asked is None and isinstance(source, There)
    if isinstance(source, There) == after:
        if after:
            LOG.launches[name] += 1
    elif after and (given.get("non_blocking") or len(args) > 2 and args[2]):
        LOG.launches["copy to the device"] += 1
        if LOG.forbid == "recording":
            LOG.wait("copy to the device")
    else:
        LOG.wait("copy to the device" if after else "copy to the host")
    result = function(*tree_map(here, args), **tree_map(here, given))
    return args[0] if name == "copy_" else There(result) if after else result


def look(name, args, kwargs, leaves):
    """Waits and mixtures of an operation on tensors of the device."""
    if name in ASKS:
        LOG.wait(name)
    index = [one for one in args[1] if one is not None] if name in INDEXING else []
    for one in index:
        if not isinstance(one, There):
            LOG.wait("index on the CPU")
        elif one.dtype in (torch.bool, torch.uint8):
            LOG.wait("boolean index")
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        LOG.wait(name)
    others = [t for t in leaves if not isinstance(t, There) and t.dim() and not any(t is one for one in index)]
    if others:
        shapes = [tuple(t.shape) for t in others]
        raise RuntimeError(f"expected all tensors on the same device: {name} got CPU tensors of {shapes} at {where()}")


# --- in the place of fedlib.accelerator's functions ---


class Recording:
    """Does the work again, where nothing may wait."""

    def __init__(self, work, pool):
        self.work = work
        LOG.recordings += 1
        before, launches = [tensor.here.clone() for tensor in changed_by(work)], LOG.launches.copy()
        with forbidden("recording"):
            work()
        LOG.launches = launches
        for tensor, was in zip(changed_by(work), before, strict=True):
            tensor.here.copy_(was)  # recording runs nothing

    def replay(self):
        LOG.replays += 1
        before = LOG.launches.copy()
        with forbidden("recording"):
            self.work()
        LOG.launches = before  # one launch for all
        LOG.launches["a recording"] += 1


def changed_by(work):
    """W, buffers and losses of fedlib.cohort.Trainer._train_block."""
    return list(work.args[:3])


@contextlib.contextmanager
def forbidden(what):
    before, LOG.forbid = LOG.forbid, what
    try:
        yield
    finally:
        LOG.forbid = before


@contextlib.contextmanager
def peak(device):
    yield (took := [])
    took.append(1000)


def side_by_side(jobs):
    for job in jobs:
        job()


usual_bind = cohort.Layout.bind


def bind(layout, module, row, buffers):
    """Instead of ``tensor.data = view``, which a tensor of this kind cannot have: new parameters."""
    if not isinstance(row, There):
        return usual_bind(layout, module, row, buffers)
    parameters = []
    for name, view in zip(layout.parameters, layout.views(row), strict=True):
        path, _, last = name.rpartition(".")
        owner = module.get_submodule(path)
        parameter = view.detach().requires_grad_(owner._parameters[last].requires_grad)
        parameter._is_param = True
        owner._parameters[last] = parameter
        parameters.append(parameter)
    for name, view in zip(layout.buffers, layout.buffer_views(buffers), strict=True):
        path, _, last = name.rpartition(".")
        module.get_submodule(path)._buffers[last] = view
    return parameters


def moved(module, device):
    """``module.to(device)``, of which parameters of another kind of tensor are replaced."""
    for owner in module.modules():
        for name, p in owner._parameters.items():
            if p is not None and p.device.type != device.type:
                own = p.detach().to(device).requires_grad_(p.requires_grad)
                own._is_param = True
                owner._parameters[name] = own
        for name, b in owner._buffers.items():
            if b is not None:
                owner._buffers[name] = b.to(device)
    return module


@pytest.fixture
def emulated(monkeypatch):
    """fedlib finds a GPU; ``device=KIND`` runs on it. Gives the log."""
    setup = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
    if setup is None:
        pytest.skip("this torch cannot be given a device of Python's own")
    if not hasattr(torch, KIND):
        setup(KIND)
        # It stays for the tests that follow in this process, and torch asks it for what every device has.
        device = getattr(torch, KIND)
        device.get_amp_supported_dtype = lambda: [torch.bfloat16]
        device.get_rng_state = lambda device=None: torch.zeros(1, dtype=torch.uint8)
        device.set_rng_state = lambda state, device=None: None
    torch._C._set_only_lift_cpu_tensors(True)
    usual = torch.nn.Module.to

    def to(module, *args, **kwargs):
        wanted = args[0] if args and isinstance(args[0], (str, torch.device)) else None
        if wanted is None or torch.device(wanted).type != KIND:
            return usual(module, *args, **kwargs)
        return moved(module, torch.device(wanted))

    monkeypatch.setattr(torch.nn.Module, "to", to)
    monkeypatch.setattr(cohort.Layout, "bind", bind)
    instead = {
        "KIND": KIND,
        "there": lambda: True,
        "has_bf16": lambda device: LOG.bf16,
        "free": lambda device: LOG.memory,
        "guard": lambda device: contextlib.nullcontext(),
        "tidy": lambda: None,
        "wait": lambda device: LOG.wait("synchronize"),
        "sent": lambda tensor, device: tensor.to(device, non_blocking=True),
        "side_by_side": side_by_side,
        "no_waiting": lambda: forbidden("waiting"),
        "peak": peak,
        "Recording": Recording,
        "pool": object,
        "recording": lambda: LOG.forbid == "recording",
    }
    for name, value in instead.items():
        monkeypatch.setattr(accelerator, name, value)
    LOG.__init__()
    with Everywhere(), torch.autograd.set_multithreading_enabled(False):
        yield LOG
