"""Is a linked model no ancestor of the one asked about: its descendant, or its sibling, by an indexed common ancestor?

Let w be the denied model, c a common ancestor and q the model asked about. A copy of w holds all that training changed
from c to w, whatever is done to it afterwards: noise, rounding and pruning are added to that change and do not take it
out. <q - c, w - c> / |w - c|^2 is the share of the change that q holds: 1 of a copy, 0 of a model that branches off at
c; up to .2 counts as that, as in `evidence/kin.py`. Two ways of measuring must agree: the kept samples of every matrix,
and the signs of all neurons of the layers that are kept whole, which nobody can put right without giving up those
layers.

No evidence about q and w alone is used. A grid, repeated layers, decay of rows and a longer vocabulary can each be made
or taken away by whoever holds a copy.

Measured on the benchmark's zoo (README.md): of 48 bases against their children 47 are relatives; of 144 siblings 55,
because two light trainings of one base go the same way for a third of their length; of 160 changed copies none, whose
share was .4 or more, and none of 288 with a wrong common ancestor.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from provindex.evidence import merge
from provindex.evidence.effects import ON_GRID, effects
from provindex.evidence.kin import BRANCHES, IN_PLACE, OLDER, Kin
from provindex.evidence.whole_layers import WholeLayers
from provindex.fingerprint.record import IMPORTED, NORMS, Fingerprint
from provindex.verdict.descent import sampled

STANDARD_ERRORS = 3.0
MOST_SIGNS = 0.6  # of the signs that the change turned: half of an equal or larger independent change, all of a copy
LEAST_SIGNS = 256  # turned signs: a share of .6 of so many is 3 standard errors above one half
MOST_ROOTS = 12  # linked rows that are tried as the common ancestor


def is_relative(query: Fingerprint, root: Fingerprint, denied: Fingerprint) -> tuple[bool, float | None]:
    """Whether the change from a common ancestor to a denied model is absent from the one asked about; and how much of
    it that one may hold, None where the three do not tell.

    root: a linked row that is not denied; it may be of the very weights that are asked about. All three must have been
    read alike, and root must be older than denied, as far as the two tell, and be the child of no denied model by its
    own word.
    """
    share = carried(query, root, denied)
    signs = carried_signs(*(fp.value("whole_layers") for fp in (query, root, denied)))
    return share is not None and share <= BRANCHES and signs is not None and signs <= MOST_SIGNS, share


def carried(query: Fingerprint, root: Fingerprint, denied: Fingerprint) -> float | None:
    """The largest share of the denied model's change that the one asked about may hold: 3 standard errors above the one
    that the samples show. None where root may be no ancestor of the denied model, or where a matrix of the two is not
    there, or stands in another order: what is not looked at may be what was carried over. A matrix that went the other
    way pays for none that went the denied model's.
    """
    sides = (query, root, denied)
    if any(fp.mode in (IMPORTED, NORMS) or fp.roles == "inferred" for fp in sides):
        return None
    if root.variant or denied.variant or denied.model_id in root.parents or _quantized(root, denied):
        return None
    ours, old, new = kept = [merge.samples(*sampled(fp)) for fp in sides]
    backward = Kin.of(kept[1:]).backward(0, 1)
    if backward is None or backward > OLDER:
        return None
    along = back = apart = variance = 0.0
    for key in old.keys() & new.keys():
        c, w = old[key], new[key]
        size = float(c @ c)
        if w.size != c.size or size == 0:
            continue
        q = ours.get(key)
        if q is None or q.size != c.size or float(q @ c) < IN_PLACE * math.sqrt(float(q @ q) * size):
            return None
        change, moved = w - c, q - c
        energy, product = float(change @ change) / size, float(moved @ change) / size
        along, back, apart = along + max(product, 0.0), back + min(product, 0.0), apart + energy
        left = float(moved @ moved) / size - (product**2 / energy if energy else 0.0)
        variance += max(left, 0.0) * energy / c.size
    if not apart or back < -BRANCHES * apart:
        return None
    return (along + STANDARD_ERRORS * math.sqrt(variance)) / apart


def _quantized(root: Fingerprint, denied: Fingerprint) -> bool:
    """Whether one of two models lies on grids: what rounding moved is no change that training made."""
    keys = root.blocks.keys if root.blocks is not None else ()
    parts = [key.split(".") for key in keys]
    layers = sorted({(part[0], int(part[1])) for part in parts if part[1].isdigit()})
    found = effects(root.blocks, denied.blocks, [(stack, at, at) for stack, at in layers])
    return max(found.grid_a, found.grid_b) >= ON_GRID


def carried_signs(q: WholeLayers | None, c: WholeLayers | None, w: WholeLayers | None) -> float | None:
    """Of the signs of neurons that differ between c and w, the share that q has as w has them, in the layer where that
    is largest; None with too few in every layer.

    Neurons are compared at their place: a model that was reordered agrees in half of its signs with anybody, and is
    told by its samples.
    """
    if q is None or c is None or w is None or not q.parts == c.parts == w.parts:
        return None
    shares = []
    for name in ("by_string", "by_id"):
        tables = [getattr(side, name) for side in (q, c, w)]
        if any(table is None for table in tables):
            continue
        for key in q.places.keys() & c.places.keys() & w.places.keys():
            ours, old, new = (table[side.places[key]] for table, side in zip(tables, (q, c, w), strict=True))
            if len(ours) == len(old) == len(new):
                change = old ^ new
                if (turned := _bits(change)) >= LEAST_SIGNS:
                    shares.append(_bits(change & ~(ours ^ new)) / turned)
        break
    return max(shares, default=None)


def _bits(words: NDArray[np.uint64]) -> int:
    return int(np.unpackbits(np.ascontiguousarray(words).view(np.uint8)).sum())
