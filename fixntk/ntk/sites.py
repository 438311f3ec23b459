"""All places where the parameters of a network enter by products, and which of their entries enter together.

A parameter may enter several times: its Jacobian is the sum of those of its sites, and inner products of two Jacobians
have terms of each pair of sites that share entries. :func:`find_sites` divides the entries of each parameter into
blocks that share no entry.

See docs/mathematics.md, M14.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from fixntk.ntk.constants import Constants, constants_beside
from fixntk.ntk.linear_maps import Step, constant_axes, move_entries, steps_of
from fixntk.ntk.partitions import all_in_order, common_cells, rectangle
from fixntk.ntk.structure import Path, Site, aval, called_jaxpr, canonical_operand, site_of

# Most ways on which parameters may arrive at one value. Sums of a parameter with itself double their number each time.
_MAX_ARRIVALS = 64


class Scale(NamedTuple):
    """A step of a use that multiplies entries by factors, which differ along the inputs, the outputs, both, or not."""

    step: int
    by_input: bool
    by_output: bool


class Use(NamedTuple):
    """A site, and the linear maps on the way from its parameter to its operand.

    Attributes
    ----------
    site
        The site.
    steps
        The linear maps.
    scales
        Those that multiply the entries.
    chosen
        The groups, inputs and outputs of the operand that are the parameter's; None if all are.
    """

    site: Site
    steps: tuple[Step, ...]
    scales: tuple[Scale, ...]
    chosen: tuple[np.ndarray, np.ndarray, np.ndarray] | None

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Numbers of groups, of inputs and of outputs that are the parameter's."""
        if self.chosen is None:
            return self.site.groups, self.site.inputs, self.site.outputs
        groups, inputs, outputs = map(len, self.chosen)
        return groups, inputs, outputs

    @property
    def is_weighted(self) -> bool:
        """Whether entries have factors that are no products of one factor by input and one by output."""
        return any(scale.by_input and scale.by_output for scale in self.scales)


class Part(NamedTuple):
    """Uses of the same entries in the same way, whose positions are taken together.

    ``is_swapped`` says that the inputs of the block are the outputs here, and its outputs the inputs.
    """

    uses: tuple[Use, ...]
    is_swapped: bool

    @property
    def is_lookup(self) -> bool:
        """Whether the activations are row numbers."""
        return self.uses[0].site.is_lookup

    @property
    def groups(self) -> int:
        """Number of groups G."""
        return self.uses[0].sizes[0]

    @property
    def positions(self) -> int:
        """Number of positions T, of all uses."""
        return sum(use.site.positions for use in self.uses)

    @property
    def inputs(self) -> int:
        """Number of inputs I."""
        return self.uses[0].sizes[1]

    @property
    def outputs(self) -> int:
        """Number of outputs J."""
        return self.uses[0].sizes[2]


class Block(NamedTuple):
    """Entries of a leaf that enter together, as an array (G, I, J), and all the uses of them."""

    leaf: int
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Number of entries."""
        part = self.parts[0]
        return part.groups * part.inputs * part.outputs

    @property
    def is_weighted(self) -> bool:
        """Whether the entries have factors; the block then has a single use."""
        return self.parts[0].uses[0].is_weighted


# A way on which a leaf arrives at a value.
class _Arrival(NamedTuple):
    leaf: int
    steps: tuple[Step, ...]


class _Values(NamedTuple):
    """What is known of the values of a jaxpr: the leaves that arrive there, and which do not depend on the inputs.

    ``lookups`` are look-ups of known rows that are sites themselves, as what becomes of the rows is no product.
    """

    arrivals: dict[Var, tuple[_Arrival, ...]]
    fixed: set[Var]
    constant_along: dict[Var, frozenset[int]]
    constants: Constants
    lookups: set[Path]

    def arriving(self, atom: Literal | Var) -> tuple[_Arrival, ...]:
        """The leaves that arrive at a value."""
        return () if isinstance(atom, Literal) else self.arrivals.get(atom, ())

    def is_fixed(self, atom: Literal | Var) -> bool:
        """Whether a value does not depend on the network's inputs."""
        return isinstance(atom, Literal) or atom in self.fixed

    def note_lookups(self, steps: Sequence[Step]) -> None:
        """Note the look-ups among the steps to a place that is no product."""
        self.lookups.update(step.path for step in steps if step.equation.primitive.name == "gather")


# The uses of each leaf: a site and the steps to it, or the name of another use.
_Uses = dict[int, list["tuple[Site, tuple[Step, ...]] | str"]]


def find_sites(closed: ClosedJaxpr, num_leaves: int) -> tuple[list[Block], dict[int, str]]:
    """Return the blocks of a jaxpr whose first inputs are the parameter leaves, and the leaves used in another way.

    A leaf in neither does not enter the result. Linear maps that keep a leaf's entries apart are followed, and so are
    calls of jitted functions. If a leaf enters in a way that is not recognised, or if its uses do not divide into
    rectangles that are the same for all, the leaf is among the others, with the uses in words: nothing is assumed about
    it.
    """
    uses, lookups = _uses(closed, num_leaves, set())
    if lookups:
        uses, _ = _uses(closed, num_leaves, lookups)
    leaves = closed.jaxpr.invars[:num_leaves]
    blocks, others = [], {}
    for leaf, places in uses.items():
        at_sites = [place for place in places if not isinstance(place, str)]
        found = _blocks(leaf, at_sites, aval(leaves[leaf]).shape) if len(at_sites) == len(places) else None
        if found is not None:
            blocks += found
        else:
            names = [place if isinstance(place, str) else place[0].equation.primitive.name for place in places]
            others[leaf] = " and ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
    return blocks, others


def _uses(closed: ClosedJaxpr, num_leaves: int, lookups: set[Path]) -> tuple[_Uses, set[Path]]:
    """The uses of each leaf where the given look-ups are sites, and look-ups that are better sites than steps."""
    uses: _Uses = {leaf: [] for leaf in range(num_leaves)}
    leaves = closed.jaxpr.invars[:num_leaves]
    arrivals: dict[Var, tuple[_Arrival, ...]] = {v: (_Arrival(leaf, ()),) for leaf, v in enumerate(leaves)}
    fixed, constants = {*leaves, *closed.jaxpr.constvars}, constants_beside(closed.jaxpr, closed.consts)
    known = _Values(arrivals, fixed, {}, constants, set(lookups))
    _collect(closed.jaxpr, known, (), [True] * len(closed.jaxpr.outvars), uses)
    for v in closed.jaxpr.outvars:
        # A leaf that is itself an output of the network enters by no product.
        for leaf, before in known.arriving(v):
            uses[leaf].append("output")
            known.note_lookups(before)
    return uses, known.lookups - lookups


def _collect(jaxpr: Jaxpr, known: _Values, path: Path, is_used: Sequence[bool], uses: _Uses) -> None:
    """Note each use of a leaf, and complete what is known of the jaxpr's values.

    ``is_used`` says which of the outputs the caller uses: what only others need is no use.
    """
    needed = _needed_values(jaxpr, is_used)
    for index, equation in enumerate(jaxpr.eqns):
        if needed.isdisjoint(equation.outvars):
            continue
        here = (*path, index)
        inner = called_jaxpr(equation)
        if inner is not None:
            _collect_call(equation, inner, known, here, [v in needed for v in equation.outvars], uses)
            continue
        is_fixed = all(map(known.is_fixed, equation.invars))
        if is_fixed:
            known.fixed.update(equation.outvars)
        known.constants.note(jaxpr, equation)
        if constant := constant_axes(equation):
            known.constant_along[equation.outvars[0]] = constant
        for operand, atom in enumerate(equation.invars):
            arrivals = known.arriving(atom)
            # What is combined with the inputs is no longer a weight: it may go on to all later layers.
            steps = _steps(equation, operand, here, known) if arrivals and is_fixed else None
            if steps is not None and _count_arrivals(equation, known, len(arrivals), steps) <= _MAX_ARRIVALS:
                for step in steps:
                    v = equation.outvars[step.result]
                    ways = tuple(_Arrival(leaf, (*before, step)) for leaf, before in arrivals)
                    known.arrivals[v] = (*known.arriving(v), *ways)
                continue
            for leaf, before in arrivals:
                site = site_of(equation, operand, leaf, here)
                uses[leaf].append(equation.primitive.name if site is None else (site, before))
                if site is None:
                    known.note_lookups(before)


def _count_arrivals(equation: JaxprEqn, known: _Values, num_arrivals: int, steps: Sequence[Step]) -> int:
    """How many ways lead to the first result of an equation with these steps."""
    return len(known.arriving(equation.outvars[0])) + num_arrivals * sum(step.result == 0 for step in steps)


def _steps(equation: JaxprEqn, operand: int, path: Path, known: _Values) -> list[Step] | None:
    if path in known.lookups:
        return None
    has_indices = equation.primitive.name in ("gather", "dynamic_slice") and operand == 0
    return steps_of(
        equation, operand, path, known.constant_along, known.constants.indices(equation) if has_indices else None
    )


def _collect_call(
    equation: JaxprEqn,
    inner: ClosedJaxpr,
    known: _Values,
    path: Path,
    is_used: Sequence[bool],
    uses: _Uses,
) -> None:
    """Follow leaves into a call, and out of it."""
    body, outside = inner.jaxpr, list(equation.invars)
    arrivals = {v: known.arriving(atom) for v, atom in zip(body.invars, outside, strict=True)}
    fixed = {v for v, atom in zip(body.invars, outside, strict=True) if known.is_fixed(atom)}
    constant_along = {
        v: known.constant_along[atom]
        for v, atom in zip(body.invars, outside, strict=True)
        if not isinstance(atom, Literal) and atom in known.constant_along
    }
    constants = constants_beside(body, inner.consts)
    values = {v: value for v, atom in zip(body.invars, outside, strict=True) if (value := known.constants.of(atom))}
    constants.values.update(values)
    within = _Values(arrivals, {*fixed, *body.constvars}, constant_along, constants, known.lookups)
    _collect(body, within, path, is_used, uses)
    for v, atom in zip(equation.outvars, body.outvars, strict=True):
        known.arrivals[v] = within.arriving(atom)
        if within.is_fixed(atom):
            known.fixed.add(v)
        if (value := constants.of(atom)) is not None:
            known.constants.values[v] = value


def _needed_values(jaxpr: Jaxpr, is_used: Sequence[bool]) -> set[Var]:
    """The values on which used outputs depend."""
    needed = {v for v, used in zip(jaxpr.outvars, is_used, strict=True) if used and not isinstance(v, Literal)}
    for equation in reversed(jaxpr.eqns):
        if not needed.isdisjoint(equation.outvars):
            needed.update(v for v in equation.invars if not isinstance(v, Literal))
    return needed


def _blocks(leaf: int, places: Sequence[tuple[Site, tuple[Step, ...]]], shape: tuple[int, ...]) -> list[Block] | None:
    """The blocks of a leaf, None if its uses do not divide into rectangles that are the same, in order or swapped."""
    if len(places) == 1 and not any(step.adds_entries for step in places[0][1]):
        # A single use needs no numbers of entries, unless other entries stand beside the leaf's in the operand.
        site, steps = places[0]
        use = Use(site, steps, _scales(site, steps, None), None)
        return None if use.is_weighted and site.is_lookup else [Block(leaf, (Part((use,), False),))]
    size = int(np.prod(shape, dtype=int))
    numbers = np.arange(size).reshape(shape)
    moved = [canonical_operand(site, move_entries(steps, numbers, -1, np)) for site, steps in places]
    rectangles = [found for entries in moved if (found := rectangle(entries >= 0)) is not None]
    if len(rectangles) < len(moved):
        return None  # The leaf's entries are no rectangle in an operand.
    shared = common_cells([entries[np.ix_(*own)] for entries, own in zip(moved, rectangles, strict=True)], size)
    if shared is None:
        return None
    blocks = []
    for cells in shared:
        members = []
        for cell in cells:
            site, steps = places[cell.use]
            groups, inputs, outputs = map(np.take, rectangles[cell.use], cell.indices)
            is_whole = all_in_order((groups, inputs, outputs), moved[cell.use].shape)
            chosen = None if is_whole else (groups, inputs, outputs)
            members.append((Use(site, steps, _scales(site, steps, chosen), chosen), cell.is_swapped))
        if any(use.is_weighted and (len(members) > 1 or use.site.is_lookup) for use, _ in members):
            return None
        blocks.append(Block(leaf, _parts(members)))
    return blocks


def _parts(members: Sequence[tuple[Use, bool]]) -> tuple[Part, ...]:
    """Uses that differ in their positions alone, taken together."""
    together: dict[tuple[bool, bool], list[Use]] = {}
    for use, is_swapped in members:
        together.setdefault((is_swapped, use.site.is_lookup), []).append(use)
    return tuple(Part(tuple(uses), is_swapped) for (is_swapped, _), uses in together.items())


def _scales(
    site: Site, steps: tuple[Step, ...], chosen: tuple[np.ndarray, np.ndarray, np.ndarray] | None
) -> tuple[Scale, ...]:
    scales = []
    for number, step in enumerate(steps):
        if step.varying is None:
            continue
        if not step.varying:
            scales.append(Scale(number, by_input=False, by_output=False))
            continue
        # Each factor has a number, which is followed to see along which axes of the operand it changes.
        sizes = [size if axis in step.varying else 1 for axis, size in enumerate(step.shape)]
        labels = np.broadcast_to(np.arange(np.prod(sizes)).reshape(sizes), step.shape)
        moved = canonical_operand(site, move_entries(steps[number + 1 :], labels, -1, np))
        moved = moved if chosen is None else moved[np.ix_(*chosen)]
        by_output = bool((moved != moved[:, :, :1]).any())
        # Factors that differ by group alone are counted as differing along the inputs.
        scales.append(Scale(number, bool((moved != moved[:, :1, :]).any()) or not by_output, by_output))
    return tuple(scales)
