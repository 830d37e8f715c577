"""For each image of one destination, the nearest one of another that is alike to it."""

import numpy as np

from birder_ray.neighbours.cells import NEAREST, compared, spilled
from birder_ray.neighbours.hamming import Hashes
from birder_ray.neighbours.images import Images
from birder_ray.neighbours.index import opened
from birder_ray.neighbours.rows import Rows

Matches = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Rows of TEST, in order, the nearest row of TRAIN to each, and how far that is."""


def same_bytes(train: Images, test: Images) -> Matches:
    """Images whose files are the same, byte by byte."""
    ours, theirs = np.flatnonzero(train.read), np.flatnonzero(test.read)
    both = np.concatenate([train.bytes[ours], test.bytes[theirs]])
    _, first, back = np.unique(both.view("V16"), return_index=True, return_inverse=True)
    at = first[back.ravel()[len(ours) :]]  # of equal ones, those of TRAIN come first
    there = at < len(ours)
    return theirs[there], ours[at[there]], np.zeros(int(there.sum()), np.float32)


def same_look(train: Images, test: Images, max_bits: int) -> Matches:
    """Images whose perceptual hashes differ in no more than so many bits."""
    ours = np.flatnonzero(train.seen)
    values, first = np.unique(train.looks[ours], return_index=True)
    best, nearest = _none(len(test.looks))
    rows = np.flatnonzero(test.seen)
    if len(values):
        for some, others in Hashes(values, max_bits).near(test.looks[rows]):
            apart = np.bitwise_count(test.looks[rows[some]] ^ values[others]).astype(np.float32)
            _closer(best, nearest, rows[some], ours[first[others]], apart)
    return _matched(best, nearest)


def same_embedding(
    train: Rows, test: Rows, min_cosine: float, notes: list[str]
) -> tuple[Matches, np.ndarray, np.ndarray]:
    """Images whose embeddings have at least this cosine, and which embeddings of both have a direction."""
    index = opened(train)
    if index.kept:
        notes.append(f"the index is not kept: {index.kept}")
    best, nearest = _none(len(test))
    with spilled(train, index) as ours, spilled(test, index) as theirs:
        for some, others, cosines in compared(theirs, ours):
            at = np.nonzero(cosines >= min(min_cosine, NEAREST))
            _closer(best, nearest, some[at[0]], others[at[1]], np.maximum(1 - cosines[at], 0))
        return _matched(best, nearest), ours.good, theirs.good


def _none(rows: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full(rows, np.inf, np.float32), np.full(rows, -1)


def _closer(best: np.ndarray, nearest: np.ndarray, rows: np.ndarray, others: np.ndarray, apart: np.ndarray) -> None:
    """Note `others` as nearest to `rows` where they are nearer than what is known; of equal ones, the first."""
    order = np.lexsort((others, apart, rows))
    rows, others, apart = rows[order], others[order], apart[order]
    head = np.r_[True, rows[1:] != rows[:-1]][: len(rows)]
    rows, others, apart = rows[head], others[head], apart[head]
    nearer = (apart < best[rows]) | ((apart == best[rows]) & (others < nearest[rows]))
    best[rows[nearer]], nearest[rows[nearer]] = apart[nearer], others[nearer]


def _matched(best: np.ndarray, nearest: np.ndarray) -> Matches:
    rows = np.flatnonzero(nearest >= 0)
    return rows, nearest[rows], best[rows]
