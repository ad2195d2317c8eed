"""Sessions that hold a torch module: its parameters and buffers lie over the session's weights."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from ckptguard.errors import UsageError
from ckptguard.evaluate.frameworks import torch_with_threads
from ckptguard.evaluate.live import LiveSession
from ckptguard.evaluate.reuse import PrefixReuse
from ckptguard.evaluate.session import Context
from ckptguard.evaluate.settings import Settings
from ckptguard.evaluate.tape import storage_address
from ckptguard.evaluate.user import load_object
from ckptguard.spec import suggestion

MODEL_KEYS = {
    "model": "FILE.py:factory, a function or class without arguments that gives a torch.nn.Module",
    "strip": "prefix to take off the checkpoint's names, such as module.",
    "unknown": "what to do with tensors that the model does not have: refuse (default) or ignore",
}
RUN_KEYS = {
    "batch": "inputs per run of the model (default 256)",
    "device": "of torch (default cpu)",
    "cache": "activations to keep for prefix reuse at most (default 512MiB; 0 switches it off)",
}


class ModelSession(LiveSession):
    """The base of sessions with a torch module.

    Where type and device agree the module's parameters are the live tensors themselves; else they are copies,
    converted as `load_state_dict` does and updated element by element.

    Args:
        make: gives the module; called once.
        names: from a name of the checkpoint to one of the module's state dict, or None where it is to be left out.
        required: whether every persistent parameter and buffer of the module must be given.
    """

    def __init__(
        self,
        context: Context,
        make: Callable[[], Any],
        *,
        names: Callable[[str, set[str]], str | None] = lambda name, known: name,
        device: str = "cpu",
        cache: int = 512 << 20,
        unknown: str = "refuse",
    ) -> None:
        super().__init__(replace(context, framework="pt"))
        torch = torch_with_threads(context.threads)
        self.reuse = PrefixReuse(cache)
        self.device = device
        module = make()
        if not isinstance(module, torch.nn.Module):
            raise UsageError(f"the model's factory gave {type(module).__name__}, no torch.nn.Module")
        self.module: Any = module.eval().to(device)
        self._bound: dict[str, Any] = self._bind(names, unknown)
        self._copies = {
            name: target
            for name, target in self._bound.items()
            if target.data_ptr() != self.state[name].data_ptr() or target.dtype != self.state[name].dtype
        }

    def loaded(self, reference: bool) -> None:
        """Bring converted copies up to date; what was kept of other weights is not reused."""
        for name, target in self._copies.items():
            target.data.copy_(self.state[name])
        self.reuse.weights_are(self.loaded_digest)

    def changed(self, name: str, elements: npt.NDArray[Any]) -> None:
        """Convert the changed elements again, where the module holds a copy."""
        target = self._copies.get(name)
        if target is None:
            return
        torch = torch_with_threads(None)
        dtype = self.context.specs[name].dtype
        places = torch.from_numpy(elements * dtype.word_bits // dtype.bits)
        fresh = self.state[name].reshape(-1)[places].to(target.dtype).to(target.device)
        target.data.view(-1)[places.to(target.device)] = fresh

    def run(self, batch: Hashable, call: Callable[[], Any]) -> Any:
        """What `call` returns, on the present weights; parts that patches do not reach may come from an earlier run.

        Args:
            batch: names the inputs; one name always means the same inputs and call.
        """
        torch = torch_with_threads(None)
        with torch.no_grad():
            if not self.touched:
                return self.reuse.record(batch, call)
            bound = [self._bound[name] for name in self.touched if name in self._bound]
            return self.reuse.run(batch, call, map(storage_address, bound))

    def layer_types(self) -> dict[str, str]:
        """See `Session.layer_types`."""
        kinds = {
            id(tensor): type(layer).__name__
            for layer in self.module.modules()
            for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False))
        }
        return {name: kinds[id(tensor)] for name, tensor in self._bound.items() if id(tensor) in kinds}

    @property
    def bound(self) -> Mapping[str, Any]:
        """The module's tensors by the names of the checkpoint."""
        return self._bound

    @property
    def float_type(self) -> Any:
        """The floating type that the module computes in: that of its first floating parameter; None without one."""
        return next((p.dtype for p in self.module.parameters() if p.dtype.is_floating_point), None)

    def _bind(self, names: Callable[[str, set[str]], str | None], unknown: str) -> dict[str, Any]:
        """Lay the module's tensors over the live ones; returns by checkpoint name what the module reads."""
        targets = _persistent(self.module)
        places = {name: names(name, set(targets)) for name in self.context.specs}
        wanted = {place: name for name, place in places.items() if place in targets}
        strangers = [name for name, place in places.items() if place is not None and place not in targets]
        given = {id(targets[place]) for place in wanted if place is not None}
        missing = [name for name, tensor in targets.items() if id(tensor) not in given and not _is_counter(name)]
        if missing or (strangers and unknown == "refuse"):
            raise UsageError(_mismatch(missing, strangers, set(targets)))
        last = {
            id(targets[place]): name
            for place, name in sorted(wanted.items(), key=lambda row: list(targets).index(row[0]))
        }
        bound = {}
        for place, name in wanted.items():
            target = targets[place]
            if last[id(target)] != name:  # of tied tensors the last one counts, as with load_state_dict
                continue
            live = self.state[name]
            if tuple(target.shape) != tuple(live.shape):
                raise UsageError(
                    f"{name!r} is {list(live.shape)} in the checkpoint and {list(target.shape)} in the model; "
                    "the factory must build the model that the checkpoint is of"
                )
            if target.dtype == live.dtype and str(target.device) == "cpu":
                target.data = live
            bound[name] = target
        return bound


def build(settings: Settings) -> Callable[[], Any]:
    """The factory named by `model=`."""
    factory = load_object(settings.text("model"))
    return lambda: factory()


def stripped(prefix: str) -> Callable[[str, set[str]], str | None]:
    """Names without a prefix."""
    return lambda name, known: name.removeprefix(prefix)


def first_tensor(output: Any) -> Any:
    """The logits of what a model returned: itself, its `logits`, or the first of several."""
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, Mapping):
        return output["logits"] if "logits" in output else next(iter(output.values()))
    return output[0] if isinstance(output, tuple | list) else output


def _is_counter(name: str) -> bool:
    """Whether a tensor counts batches of training: older checkpoints lack it, as `load_state_dict` allows."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def _persistent(module: Any) -> dict[str, Any]:
    """The parameters and persistent buffers of a module by every name they have."""
    every = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    return {name: every[name] for name in module.state_dict(keep_vars=True) if name in every}


def _mismatch(missing: list[str], strangers: list[str], known: set[str]) -> str:
    parts = []
    if missing:
        parts.append(f"{len(missing)} tensors of the model are not in the checkpoint, such as {missing[0]!r}")
    if strangers:
        hint = suggestion(strangers[0], known)
        parts.append(f"{len(strangers)} tensors of the checkpoint are not in the model, such as {strangers[0]!r}{hint}")
    prefix = _common_prefix(strangers, known)
    advice = f"; strip={prefix} takes the prefix off" if prefix else ""
    return "; ".join(parts) + advice


def _common_prefix(strangers: list[str], known: set[str]) -> str:
    """The prefix without which a strange name is a known one, or nothing."""
    for name in strangers:
        parts = name.split(".")
        for cut in range(1, len(parts)):
            if ".".join(parts[cut:]) in known:
                return ".".join(parts[:cut]) + "."
    return ""
