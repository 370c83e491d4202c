"""Arithmetic on plain lists of numbers, for the references that losses and miners are compared with."""

import math


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def squared(x, y):
    """The squared Euclidean distance."""
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def unit(x):
    length = math.sqrt(dot(x, x))
    return [a / length for a in x]


def softmax(values):
    exps = [math.exp(value) for value in values]
    return [e / sum(exps) for e in exps]


def medoids(rows, labels, distance):
    """Class -> index of the member with the smallest summed distance to the others, of ties the first."""
    found = {}
    for c in sorted(set(labels) - {-1}):
        members = [i for i, label in enumerate(labels) if label == c]
        sums = [sum(distance(rows[i], rows[j]) for j in members if j != i) for i in members]
        found[c] = next(i for i, total in zip(members, sums, strict=True) if total <= min(sums) + 1e-12)
    return found
