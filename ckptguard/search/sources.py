"""Where the curvature of a model comes from: its gradients, a user's losses, or measured noise."""

from __future__ import annotations

import numpy as np

from ckptguard.campaign.design import file_digests, name_of
from ckptguard.campaign.record import digest_of
from ckptguard.evaluate.frameworks import tensor_from_bytes
from ckptguard.pipeline.work import Progress
from ckptguard.search import curvature as curvatures
from ckptguard.search import measured
from ckptguard.search.curvature import Curvature, Losses
from ckptguard.search.methods import GRADIENTS, MEASURED, NOTHING
from ckptguard.search.trials import Trials


def find_curvature(
    source: str, trials: Trials, gradients: str | Losses | None, samples: int, seed: int, progress: Progress
) -> Curvature:
    """From gradients of the evaluator or of the user's losses, or measured, where the journal has none.

    Args:
        source: `GRADIENTS`, `MEASURED` or `NOTHING` of `methods`.
    """
    if trials.journal is None or source == MEASURED:  # whose draws are in the journal
        return _find_curvature(source, trials, gradients, samples, seed, progress)
    files = file_digests(gradients) if isinstance(gradients, str) else {}
    asked = {"curvature": source, "gradients": gradients and name_of(gradients), "files": files, "samples": samples}
    key = digest_of({"trials": trials.conditions, "asked": asked, "seed": seed})
    found = trials.journal.curvature(key)
    if found is None:
        found = _find_curvature(source, trials, gradients, samples, seed, progress)
        trials.journal.add_curvature(key, found)
    return found


def _find_curvature(
    source: str, trials: Trials, gradients: str | Losses | None, samples: int, seed: int, progress: Progress
) -> Curvature:
    if source == MEASURED:
        return measured.curvature(trials, progress=progress)
    if gradients is not None:
        state = {
            name: tensor_from_bytes("pt", tensor.dtype, tensor.shape, np.array(trials.bare.base[name]))
            for name, tensor in trials.subject.tensors.items()
        }
        return curvatures.of_losses(gradients, state, progress)
    if source == NOTHING and not hasattr(trials.session, "calibration"):
        ones = {name: 1.0 for name in trials.bare.encodings}
        return Curvature(ones, 0, "none: every element counts the same")
    assert source in (GRADIENTS, NOTHING)
    return curvatures.of_session(trials.session, samples, seed, progress)
