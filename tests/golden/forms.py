"""The forms of a part of a block beyond two factors, each by the textbook formula in f64: writes forms.json.

    python forms.py

Inputs are formulas, so that the file holds answers only. What is stored is said in README.md.
"""

import numpy as np

from common import digits, versions, write_json


def matrix(rows, cols, seed):
    """sin(seed + 0.7 i^2 + 1.3 j + 0.37 i j)."""
    i, j = np.arange(rows, dtype=np.float64)[:, None], np.arange(cols, dtype=np.float64)
    return np.sin(seed + 0.7 * i**2 + 1.3 * j + 0.37 * i * j)


def root(a):
    values, vectors = np.linalg.eigh(a)
    return vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T


def fitted(y, x):
    """argmin ||Y - W X||."""
    return np.linalg.lstsq(x.T, y.T, rcond=None)[0].T


def weighted(m, e):
    return np.trace(m @ e @ e.T)


def channels():
    w, x, r = matrix(5, 10, 1), matrix(10, 40, 2), matrix(5, 5, 3)
    x *= (1 + np.arange(10) % 4)[:, None]
    result = {}
    for name, m in (("plain", np.eye(5)), ("weighted", r @ r.T)):
        kept, error = [], [weighted(m, w @ x)]
        while len(kept) < 10:
            costs = {}
            for j in set(range(10)) - set(kept):
                s = kept + [j]
                costs[j] = weighted(m, w @ x - fitted(w @ x, x[s]) @ x[s])
            kept.append(min(costs, key=costs.get))
            error.append(costs[kept[-1]])
        s = kept[:6]
        result[name] = {"order": kept, "error": error, "refit": fitted(w @ x, x[s])}
    return result


def value_output():
    """4 heads of 4 dimensions in 2 groups, 6 outputs."""
    heads, groups, d = 4, 2, 4
    o, z, r = matrix(6, heads * d, 4), matrix(heads * d, 50, 5), matrix(6, 6, 6)
    g = z @ z.T
    result = {}
    for name, m in (("plain", np.eye(6)), ("weighted", r @ r.T)):
        error, merged = [], None
        for rank in range(d + 1):
            a = np.zeros((heads * rank, heads * d))
            for j in range(groups):
                blocks = [slice(h * d, (h + 1) * d) for h in (2 * j, 2 * j + 1)]
                s = root(sum(g[b, b] for b in blocks))
                t = root(sum(o[:, b].T @ m @ o[:, b] for b in blocks))
                v = np.linalg.svd(t @ s)[2][:rank] @ np.linalg.inv(s)
                for h, b in zip((2 * j, 2 * j + 1), blocks):
                    a[h * rank : (h + 1) * rank, b] = v
            cut = fitted(o @ z, a @ z) @ a if rank else np.zeros_like(o)
            error.append(weighted(m, (o - cut) @ z))
            merged = cut if rank == 2 else merged
        result[name] = {"error": error, "merged": merged}
    return result


def plain(value):
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def main():
    result = {"schema": 1, "versions": versions()}
    for part in (channels, value_output):
        result[part.__name__] = plain(part())
    write_json("forms.json", digits(result, 13), depth=4)


if __name__ == "__main__":
    main()
