"""How far rankings of KV heads agree, from the files of gates alone:

    python benchmarks/studies/gates.py            # RLKV's two seeds, DuoAttention's gates, measured head shares
    python benchmarks/studies/gates.py --random   # writes the random gates of rlkv.yaml, gates/random-N.tsv

A head is full as it is for `reasonalloc`: those with the highest gates, of equal ones the first by (layer, head). Many
gates are exactly 0, so full heads in common are told with equal gates in random order too. Imports nothing of
reasonalloc.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

HERE = Path(__file__).parent
TRAINED = HERE.parent / "results" / "rlkv"
FILES = {
    "seed0": TRAINED / "seed0" / "adapter_weights.tsv",
    "seed1": TRAINED / "seed1" / "adapter_weights.tsv",
    "duo": TRAINED / "duo" / "full_attention_heads.tsv",
    "shares": HERE / "heads.tsv",
}
SPARSITIES = (0.2, 0.4, 0.5, 0.6, 0.8)
RANDOM = 5  # files
DRAWS = 10_000


def read(path: Path) -> np.ndarray:
    """[layers, heads]"""
    return np.loadtxt(path, ndmin=2)


def random_file(number: int) -> Path:
    return HERE / "gates" / f"random-{number}.tsv"


def random_gates(number: int, shape: tuple[int, int] = (30, 3)) -> np.ndarray:
    """Uniform, so that no two are equal; the number is the seed."""
    return np.random.default_rng(number).random(shape)


def full_heads(gates: np.ndarray, sparsity: float, rng: np.random.Generator | None = None) -> np.ndarray:
    """Which heads are full, flat; of equal gates the first ones, or with `rng` some of them."""
    clipped = np.clip(gates, 0, 1).ravel()
    order = np.arange(clipped.size) if rng is None else rng.permutation(clipped.size)
    highest = order[np.argsort(-clipped[order], kind="stable")]
    full = np.zeros(clipped.size, bool)
    full[highest[: clipped.size - round(sparsity * clipped.size)]] = True
    return full


def tied(gates: np.ndarray, sparsity: float) -> int:
    """How many of the full heads are full by their place: their gate is also that of a local head."""
    clipped, full = np.clip(gates, 0, 1).ravel(), full_heads(gates, sparsity)
    return int(np.isin(clipped[full], clipped[~full]).sum())


def within_layers(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A permutation of the heads, flat, that leaves each in its layer."""
    layers, heads = shape
    return (rng.permuted(np.tile(np.arange(heads), (layers, 1)), axis=1) + heads * np.arange(layers)[:, None]).ravel()


def spearman(values: np.ndarray) -> np.ndarray:
    """Of one ranking: its product with another's is Spearman's correlation. Equal values share their mean rank."""
    centred = rankdata(values) - (values.size + 1) / 2
    return centred / np.linalg.norm(centred)


def kendall(values: np.ndarray) -> np.ndarray:
    """The same of Kendall's tau-b: signs of all pairs, as a matrix."""
    signs = np.sign(values.ravel()[:, None] - values.ravel()[None])
    return signs / np.linalg.norm(signs)


def correlation(
    form: Callable[[np.ndarray], np.ndarray], a: np.ndarray, b: np.ndarray, rng: np.random.Generator
) -> tuple[float, float, float]:
    """The correlation of two rankings; its two-sided p when heads are exchanged at random; the one-sided p when they
    are exchanged within their layer only, which asks whether rankings agree by more than which layers matter."""
    one, other = form(a), form(b)

    def moved(order: np.ndarray) -> float:
        return float((one * (other[order] if other.ndim == 1 else other[np.ix_(order, order)])).sum())

    found = moved(np.arange(a.size))
    anywhere = np.array([moved(rng.permutation(a.size)) for _ in range(DRAWS)])
    inside = np.array([moved(within_layers(a.shape, rng)) for _ in range(DRAWS)])
    p = (1 + int((abs(anywhere) >= abs(found) - 1e-12).sum())) / (1 + DRAWS)
    return found, p, (1 + int((inside >= found - 1e-12).sum())) / (1 + DRAWS)


def shared(a: np.ndarray, b: np.ndarray, sparsity: float, rng: np.random.Generator | None = None) -> float:
    """Share of the full heads that both have."""
    one, other = full_heads(a, sparsity, rng), full_heads(b, sparsity, rng)
    return float((one & other).sum() / one.sum())


def main() -> None:
    if sys.argv[1:] == ["--random"]:
        for number in range(RANDOM):
            np.savetxt(random_file(number), random_gates(number), fmt="%.18e", delimiter="\t")
        return
    gates, rng = {name: read(path) for name, path in FILES.items()}, np.random.default_rng(1)
    for name in ("seed0", "seed1", "duo"):
        x = gates[name]
        ends = f"exactly 0: {(x == 0).sum()}, 1: {(x == 1).sum()}"
        print(f"{name:7s} {x.size} gates, mean {x.mean():.3f}, below 0.5 {(x < 0.5).mean():.0%}, {ends}")
    # Shares of slots are no gates: only their order is used.
    gates["shares"] = gates["shares"] / gates["shares"].max()
    pairs = list(combinations(gates, 2))
    print(f"\nrank correlations; p of {DRAWS:,} permutations of the heads, in brackets of those within layers")
    for a, b in pairs:
        told = []
        for title, form in (("Spearman", spearman), ("Kendall tau-b", kendall)):
            found, p, inside = correlation(form, gates[a], gates[b], rng)
            told.append(f"{title} {found:+.2f}, p {p:.2g} ({inside:.2g})")
        print(f"  {a + ' and ' + b:18s} {'; '.join(told)}")
    print("\nfull heads in common as `rlkv` takes them; in brackets with equal gates in random order, mean of 1,000")
    print(f"  {'sparsity':24s}" + "".join(f"{x:>14.1f}" for x in SPARSITIES))
    print(f"  {'by chance':24s}" + "".join(f"{1 - round(90 * x) / 90:>14.0%}" for x in SPARSITIES))
    for a, b in pairs:
        cells = []
        for x in SPARSITIES:
            drawn = np.mean([shared(gates[a], gates[b], x, rng) for _ in range(1000)])
            cells.append(f"{shared(gates[a], gates[b], x):.0%} ({drawn:.0%})")
        print(f"  {a + ' and ' + b:24s}" + "".join(f"{x:>14s}" for x in cells))
    print("full heads whose gate a local head has too, so that their place decides")
    for name, x in gates.items():
        print(f"  {name:24s}" + "".join(f"{tied(x, s):>14d}" for s in SPARSITIES))


if __name__ == "__main__":
    main()
