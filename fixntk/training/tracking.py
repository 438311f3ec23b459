"""Following the tangent kernel of a network along its training, as a callback or in any training loop.

See docs/mathematics.md, M14.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from jax import Array
from jax.typing import ArrayLike

from fixntk._checks import as_float_array, as_positive_int
from fixntk.ntk.inputs import check_batch_size
from fixntk.ntk.modules import check_is_bound, is_model
from fixntk.training.ntk_records import NTKHistory, Options, Probes, measure
from fixntk.training.results import TrainingProgress


@dataclass(eq=False)
class NTKTracker:
    """Records the tangent kernel at each call; made by :func:`track`.

    Attributes
    ----------
    records
        What was recorded, one :class:`NTKHistory` without a first axis for each record.

    See docs/mathematics.md, M14.
    """

    _f: Callable[..., Any]
    _x: Any
    _y: Array | None
    _options: Options
    records: list[NTKHistory] = field(default_factory=list)
    _probes: Probes | None = None

    def __repr__(self) -> str:
        return f"NTKTracker({len(self.records)} records)"

    @property
    def history(self) -> NTKHistory:
        """All records so far as arrays.

        Raises
        ------
        ValueError
            If there is no record yet.
        """
        if not self.records:
            raise ValueError("the tracker has no record yet: call it with a step and parameters")
        columns = zip(*self.records, strict=True)
        return NTKHistory(*(None if column[0] is None else np.stack(column) for column in columns))  # type: ignore[arg-type]

    @overload
    def __call__(self, step: TrainingProgress) -> None: ...

    @overload
    def __call__(self, step: int, params: Any) -> NTKHistory | None: ...

    def __call__(self, step: int | TrainingProgress, params: Any = None) -> NTKHistory | None:
        """Record the kernel after a number of steps; with a :class:`TrainingProgress`, as the callback of ``fx.train``.

        Parameters
        ----------
        step
            Number of steps made, or the progress of a training, which has the parameters too.
        params
            Parameters of the tracked function; the module itself where a module is tracked.

        Returns
        -------
        The record; None as a callback, and where fewer than ``every`` steps were made since the last record.

        Raises
        ------
        TypeError, ValueError
            As :func:`fixntk.empirical_ntk`; also if y does not have the shape of the outputs, or a training is of a
            stack of networks, or a module is tracked and ``params`` is none.
        """
        if isinstance(step, TrainingProgress):
            if np.ndim(step.objective):
                raise ValueError("track follows one network, and this training is of a stack of networks")
            # A training that diverged has parameters without a kernel, and reports it itself.
            if np.isfinite(step.objective):
                self._record(step.step, step.network)
            return None
        if not hasattr(step, "__index__"):
            raise TypeError(f"step must be an integer or the progress of a training, got {type(step).__name__}")
        return self._record(operator.index(step), params)

    def _record(self, step: int, params: Any) -> NTKHistory | None:
        if self.records and step - int(self.records[-1].steps) < self._options.every:
            return None
        if is_model(self._f) and not is_model(params):
            kind = type(params).__name__
            raise TypeError(f"the tracker follows a module: call it with a step and the module, got {kind}")
        record, self._probes = measure(self._f, params, self._x, self._y, self._options, step, self._probes)
        self.records.append(record)
        return record


def track(
    f: Callable[..., Any],
    x: Any,
    y: ArrayLike | None = None,
    *,
    num: int = 5,
    smallest: bool = False,
    centred: bool = True,
    every: int = 1,
    num_probes: int = 16,
    dense_rows: int = 200,
    tol: float = 1e-6,
    select: str | Sequence[str] | Callable[[str, Any], Any] | None = None,
    batch_size: int | None = None,
    batch_axes: tuple[int, int] = (0, 0),
    kwargs: Mapping[str, Any] | None = None,
) -> NTKTracker:
    """Follow the empirical NTK of a network along its training: spectrum, change, and alignment with the targets.

    ``tracker(step, params)`` records the kernel in any training loop, ``fx.train(…, callback=tracker)`` at each record
    of a training, and ``tracker.history`` has all records as arrays. Up to ``dense_rows`` rows, of examples times
    outputs, the kernel is made and every number is exact. Above, the matrix is never made: eigenvalues are those of
    :func:`fixntk.ntk_spectrum`, the alignment takes one product with the targets, and norms take ``num`` products with
    the first record's eigenvectors and ``num_probes`` with random vectors, the same ones in all records.

    Parameters
    ----------
    f
        ``f(params, x)`` of a batch, as for :func:`fixntk.empirical_ntk`. In ``fx.train`` the parameters are the network
        itself: pass ``fx.ReLUNetwork.__call__``, or for gated networks ``fx.GatedReLUNetwork.__call__`` with
        ``select=("hidden", "output", "intercept")``, as gates are not trained. Of a Flax or Equinox module pass the
        module, and ``tracker(step, module)`` for each record, which is then compiled anew; to compile once, write the
        function. Where the function returns several arrays, the kernel has a row for each output of all of them.
    x
        (n, …) inputs of the kernel, or a pytree of them; a few hundred rows of the data tell most.
    y
        (n, …) targets of the shape of the outputs, for the alignment; (n, m) for several arrays, as in
        :class:`NTKSpectrum`. None is recorded when None.
    num
        Number of leading eigenvalues.
    smallest
        Whether to find the smallest eigenvalue, for the condition number. Without the matrix it takes many products.
    centred
        Whether norms, similarity and alignment are of the kernel centred over the examples, and of centred targets.
        A network that adds a constant to its outputs then has the same alignment.
    every
        Smallest number of steps between two records; calls in between return None at no cost.
    num_probes
        Number of random vectors, at least 2. The relative error of a norm falls with its root.
    dense_rows
        Number of rows up to which the kernel is made.
    tol
        Relative accuracy of the eigenvalues above ``dense_rows``.
    select, batch_size, batch_axes, kwargs
        As for :func:`fixntk.empirical_ntk`.

    Returns
    -------
    NTKTracker
        With ``history`` and ``records``; :func:`fixntk.plots.history` draws it.

    Raises
    ------
    TypeError, ValueError
        If an option is out of range, or y is not finite. Parameters and shapes are checked at each call.

    References
    ----------
    Cristianini, Shawe-Taylor, Elisseeff and Kandola, "On kernel-target alignment", NeurIPS 2001, for the alignment;
    Cortes, Mohri and Rostamizadeh, "Algorithms for learning kernels based on centered alignment", JMLR 13, 2012, for
    centring; Fort et al., "Deep learning versus kernel learning", NeurIPS 2020, for the similarity.

    Examples
    --------
    >>> import jax.numpy as jnp, fixntk as fx
    >>> x = jnp.array([[1.0], [-2.0], [3.0]])
    >>> tracker = fx.track(lambda w, x: jnp.tanh(x @ w), x, y=x[:, 0])
    >>> for step in range(3):
    ...     record = tracker(step, jnp.array([0.1 * step]))
    >>> tracker.history
    NTKHistory(3 records: step 0 to 2, trace 14 to 8.41, similarity 1 to 0.989, alignment 1 to 0.989)

    See docs/mathematics.md, M14.
    """
    if not callable(f):
        raise TypeError(f"f must be a function f(params, x), got {type(f).__name__}")
    check_is_bound(f)
    counts = {"num": num, "every": every, "num_probes": num_probes, "dense_rows": dense_rows}
    counts = {name: as_positive_int(name, value) for name, value in counts.items()}
    if num_probes < 2:
        raise ValueError(f"num_probes must be at least 2, for an error of the norm, got {num_probes}")
    if isinstance(tol, str) or not hasattr(tol, "__float__"):
        raise TypeError(f"tol must be a number, got {type(tol).__name__}")
    if not 0 < float(tol) < 1:
        raise ValueError(f"tol must be between 0 and 1, got {tol!r}")
    check_batch_size(batch_size)
    targets = None if y is None else as_float_array("y", y, tuple(range(1, max(np.ndim(y), 1) + 1)))
    options = Options(
        **counts,
        smallest=smallest,
        centred=centred,
        tol=tol,
        select=select,
        batch_size=batch_size,
        batch_axes=batch_axes,
        kwargs=kwargs,
    )
    return NTKTracker(f, x, targets, options)
