"""Who holds what: split the indices of a labelled data set among clients.

Every function returns one sorted int64 index tensor a client. No sample is held twice, no client is empty, and the same
`seed` gives the same partition; the global random state is neither used nor changed.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch

from fedlib import checks
from fedlib.data import as_array

MAX_TRIES = 1000  # Dirichlet draws before giving up on min_size
LARGEST_BETA = 1e12  # beyond it shares are equal to rounding anyway, and gamma variates would overflow


def iid(labels, clients: int, seed: int = 0) -> list[torch.Tensor]:
    """Deal all samples at random; client sizes differ by at most one.

    Args:
        labels: 1-D integer tensor or array (only its length matters here).
        clients: how many.
        seed: of the deal.

    Raises:
        ValueError: labels that are not that, clients < 1, or more clients than samples.
    """
    labels, clients = _checked(labels, clients)
    return _finish(np.array_split(_rng(seed).permutation(len(labels)), clients))


def shards(labels, clients: int, shards_per_client: int = 2, seed: int = 0) -> list[torch.Tensor]:
    """Sort by label, cut into clients * shards_per_client equal shards, deal shards_per_client to each client.

    McMahan et al. 2017 (arXiv 1602.05629), section 3. All samples are used: shard sizes differ by at most one. A shard
    may span two classes, so a client may hold more than shards_per_client classes.

    Raises:
        ValueError: more shards than samples.
    """
    labels, clients = _checked(labels, clients)
    checks.whole(shards_per_client=shards_per_client)
    count = clients * int(shards_per_client)
    if count > len(labels):
        raise ValueError(f"clients * shards_per_client = {count} shards, but there are only {len(labels)} samples")
    pieces = np.array_split(np.argsort(labels, kind="stable"), count)
    dealt = _rng(seed).permutation(count).reshape(clients, -1)
    return _finish([np.concatenate([pieces[s] for s in own]) for own in dealt])


def n_class(labels, clients: int, n: int, seed: int = 0) -> list[torch.Tensor]:
    """Every client holds exactly n classes.

    Each of the C classes is cut into clients * n / C consecutive chunks of equal size, and chunks are dealt at random
    so that a client's n chunks come from n distinct classes (Zhang et al. 2024, arXiv 2308.09565; their released code
    may clash and ask to be run again, this does not). Chunk sizes within a class differ by at most one. If C does not
    divide clients * n, randomly chosen classes are cut into one chunk more than the others. All samples are used,
    unless clients * n < C: then only clients * n classes, chosen at random, are held by anyone.

    Raises:
        ValueError: n < 1, n above the number of classes present, or a class with fewer samples than chunks.
    """
    labels, clients = _checked(labels, clients)
    classes, sizes = np.unique(labels, return_counts=True)
    checks.whole(n=n)
    if n > len(classes):
        raise ValueError(f"n must be at most the number of classes, got n={n} with {len(classes)} classes in labels")
    rng = _rng(seed)
    chunks = np.full(len(classes), clients * n // len(classes))
    chunks[rng.permutation(len(classes))[: clients * n % len(classes)]] += 1
    if (short := np.flatnonzero(sizes < chunks)).size:
        c = short[0]
        raise ValueError(
            f"class {classes[c]} has {sizes[c]} samples, too few for the {chunks[c]} chunks that "
            f"clients={clients} and n={n} ask for; take fewer clients or a smaller n"
        )
    hands = _deal(chunks, clients, n, rng)
    parts = [[] for _ in range(clients)]
    for c in np.flatnonzero(chunks):
        holders = rng.permutation(np.flatnonzero((hands == c).any(1)))
        for client, chunk in zip(holders, np.array_split(np.flatnonzero(labels == classes[c]), chunks[c]), strict=True):
            parts[client].append(chunk)
    return _finish([np.concatenate(own) for own in parts])


def _deal(chunks: np.ndarray, clients: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Class numbers (clients, n) with class c appearing chunks[c] times, rows without repeats. Needs chunks <= clients.

    Deal a shuffled deck, then swap repeats away. A repeated class c of row a goes to a random row b that lacks it. In
    exchange, a gets an entry of b that a lacks, or that b holds twice. One of the two exists: without repeats b has n
    classes, none of them c, and a has at most n - 2 others. Each swap lowers the number of repeats, so this ends.
    """
    hands = rng.permutation(np.repeat(np.arange(len(chunks)), chunks)).reshape(clients, n)
    for a in range(clients):
        while (repeats := np.flatnonzero(_repeated(hands[a]))).size:
            i = repeats[0]
            b = rng.choice(np.flatnonzero((hands != hands[a, i]).all(1)))
            j = rng.choice(np.flatnonzero(~np.isin(hands[b], hands[a]) | _repeated(hands[b])))
            hands[a, i], hands[b, j] = hands[b, j], hands[a, i]
    return hands


def _repeated(row: np.ndarray) -> np.ndarray:
    """True where an entry occurs earlier in the row."""
    later = np.ones(len(row), dtype=bool)
    later[np.unique(row, return_index=True)[1]] = False
    return later


def dirichlet(
    labels, clients: int, beta: float, seed: int = 0, equal_size: bool = False, min_size: int = 1
) -> list[torch.Tensor]:
    """Label skew drawn from a Dirichlet distribution; small beta means strong skew, large beta nearly iid.

    equal_size=False (Zhang et al. 2024, arXiv 2308.09565): for each class, the shares of the K clients are
    q ~ Dir(beta * 1_K), and the class's shuffled samples are cut at the cumulative shares, rounded. All samples are
    used; client sizes differ. Drawn anew until every client has min_size samples.

    equal_size=True (FedDyn, arXiv 2111.04263, and FedNAR, arXiv 2310.03163): each client draws a class prior
    p_k ~ Dir(beta * 1_C), and its floor(samples / clients) samples are drawn from it without replacement, clients in
    random order. When a class runs out, priors are restricted to the others; a client whose prior has nothing left
    takes what there is. The remainder of samples / clients is held by nobody.

    Raises:
        ValueError: a beta that is not positive and finite, a min_size below 1 or above what the samples allow, or
            MAX_TRIES draws that never reach it.
    """
    labels, clients = _checked(labels, clients)
    checks.positive(beta=beta)
    checks.whole(min_size=min_size)
    if min_size * clients > len(labels):
        raise ValueError(
            f"min_size={min_size} for clients={clients} needs {min_size * clients} samples, but there are {len(labels)}"
        )
    rng = _rng(seed)
    members = [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    sizes = np.array([len(m) for m in members])
    if equal_size:
        held = _equal_counts(sizes, clients, beta, rng)
    else:
        held = _class_counts(sizes, clients, beta, min_size, rng)
    return _finish(_cut(members, held))


def _class_counts(sizes: np.ndarray, clients: int, beta: float, min_size: int, rng: np.random.Generator) -> np.ndarray:
    """Samples (clients, classes): for each class, Dirichlet shares of the clients."""
    for _ in range(MAX_TRIES):
        shares = rng.dirichlet(np.full(clients, min(beta, LARGEST_BETA)), size=len(sizes))  # (classes, clients)
        ends = np.rint(np.cumsum(shares, axis=1) * sizes[:, None])
        ends[:, -1] = sizes  # exactly, whatever the rounding of the sum
        held = np.diff(ends, axis=1, prepend=0).T
        if np.isfinite(held).all() and held.sum(1).min() >= min_size:
            return held.astype(np.int64)
    raise ValueError(
        f"no Dirichlet partition in {MAX_TRIES} draws gave each of clients={clients} at least "
        f"min_size={min_size} samples with beta={beta}; take fewer clients, a larger beta or "
        f"equal_size=True"
    )


def _equal_counts(sizes: np.ndarray, clients: int, beta: float, rng: np.random.Generator) -> np.ndarray:
    """Samples (clients, classes): every client draws the same number from its own class prior.

    The draws are one long sequence. Up to the draw that finds its class empty they do not influence each other, so they
    are made all at once and kept up to there; then the empty class is struck out and the rest is drawn again.
    """
    left = sizes.copy()
    prior = rng.dirichlet(np.full(len(sizes), min(beta, LARGEST_BETA)), size=clients)  # (clients, classes)
    turns = rng.permutation(np.repeat(np.arange(clients), sizes.sum() // clients))
    held = np.zeros((clients, len(sizes)), dtype=np.int64)
    while len(turns):
        drawn = _draw(np.where(left > 0, prior, 0), left, turns, rng)
        stop = len(turns)
        for c in range(len(sizes)):  # the first draw of class c beyond its last sample
            stop = min([stop, *np.flatnonzero(drawn == c)[left[c] : left[c] + 1]])
        np.add.at(held, (turns[:stop], drawn[:stop]), 1)
        left -= np.bincount(drawn[:stop], minlength=len(sizes))
        turns = turns[stop:]
    return held


def _draw(weights: np.ndarray, left: np.ndarray, turns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One class for each entry of turns (clients), with probability proportional to that client's weights."""
    lost = weights.sum(1) < np.finfo(float).tiny
    weights[lost] = left  # the prior has no class left (or underflowed): any sample that is left
    ends = np.cumsum(weights, axis=1)
    ends /= ends[:, -1:]
    # One sorted search for all clients: client k's distribution function occupies (k, k + 1].
    ladder = (ends + np.arange(len(weights))[:, None]).ravel()
    rung = turns + rng.random(len(turns)) * (1 - 1e-9)  # stay below k + 1 when rounded
    return np.searchsorted(ladder, rung, side="right") % weights.shape[1]


def by_domain(domains, clients_per_domain: int = 1, mix: float = 0.0, seed: int = 0) -> list[torch.Tensor]:
    """Domain skew: clients hold images of one domain each, clients_per_domain of them for every domain.

    Client k holds samples of domain k // clients_per_domain; sizes within a domain differ by at most one. All samples
    are used.

    Args:
        domains: 1-D integer tensor or array, each sample's domain (`Data.domain_train`, `Data.domain_test`).
        clients_per_domain: how many clients share a domain.
        mix: this share of every client's samples, chosen at random, is put together and dealt to all: 1 is iid, with
            the sizes that 0 gives.
        seed: of all that is drawn.

    Raises:
        ValueError: no domains, a mix outside [0, 1], a domain number without samples, or one with fewer samples than
            clients.
    """
    if domains is None:
        raise ValueError("domains must number the domain of each sample; this data set has one domain only")
    domains = _checked_labels("domains", domains)
    checks.whole(clients_per_domain=clients_per_domain)
    checks.fraction(mix=mix)
    sizes = np.bincount(domains)
    if not sizes.size or sizes.min() < clients_per_domain:
        raise ValueError(
            f"clients_per_domain={clients_per_domain}, but domain {int(sizes.argmin()) if sizes.size else 0} has only "
            f"{int(sizes.min(initial=len(domains)))} samples"
        )
    rng = _rng(seed)
    parts = [
        part
        for d in range(len(sizes))
        for part in np.array_split(rng.permutation(np.flatnonzero(domains == d)), clients_per_domain)
    ]
    given = [round(mix * len(part)) for part in parts]
    pool = rng.permutation(np.concatenate([part[:n] for part, n in zip(parts, given, strict=True)]))
    dealt = np.split(pool, np.cumsum(given)[:-1])
    return _finish([np.concatenate([part[n:], extra]) for part, n, extra in zip(parts, given, dealt, strict=True)])


def like(parts: Sequence, labels, test_labels, seed: int = 0, domains=None, test_domains=None) -> list[torch.Tensor]:
    """Split a test set so that each class is shared among the clients as `parts` shares it in training.

    Client k gets n_c * m_kc / sum_k m_kc of the n_c test samples of class c, where m_kc counts its training samples;
    fractions are rounded by largest remainder, ties at random. Each test sample of a class that some client holds is
    used exactly once; classes that nobody holds are left out.

    Where clients hold different domains (`by_domain`), give the domains, too: c is then a class of one domain, so that
    a client is tested on images of its own domains only. Without them every client is tested on all domains alike.

    Args:
        parts: index tensors into labels.
        labels, test_labels: 1-D integer tensors or arrays.
        seed: of the ties.
        domains, test_domains: 1-D integer tensors or arrays, each sample's domain (`Data.domain_train`,
            `Data.domain_test`); None for one kind.

    Returns:
        Index tensors into test_labels.

    Raises:
        ValueError: bad parts, domains of only one of the two sets or not one for each label, or a client that would
            get no test sample.
    """
    labels, test_labels = _checked_labels("labels", labels), _checked_labels("test_labels", test_labels)
    if (domains is None) != (test_domains is None):
        given, lacking = ("domains", "test_domains") if test_domains is None else ("test_domains", "domains")
        raise ValueError(f"{given} needs {lacking}: the domains of both sets, or of neither")
    num_classes = int(max(labels.max(initial=0), test_labels.max(initial=0))) + 1
    if domains is not None:  # each pair of class and domain that occurs counts as a class
        labels = labels + num_classes * _checked_like("domains", domains, "labels", labels)
        test_labels = test_labels + num_classes * _checked_like(
            "test_domains", test_domains, "test_labels", test_labels
        )
        pairs, numbers = np.unique(np.concatenate([labels, test_labels]), return_inverse=True)
        (labels, test_labels), num_classes = np.split(numbers, [len(labels)]), len(pairs)
    trained = counts(parts, labels, num_classes).numpy()
    rng = _rng(seed)
    members = [rng.permutation(np.flatnonzero(test_labels == c)) for c in range(num_classes)]
    held = np.zeros_like(trained)
    for c in np.flatnonzero(trained.sum(0)):
        exact, total = len(members[c]) * trained[:, c], trained[:, c].sum()
        held[:, c], remainder = exact // total, exact % total
        order = np.lexsort((rng.random(len(exact)), -remainder))
        held[order[: len(members[c]) - held[:, c].sum()], c] += 1
    return _finish(_cut(members, held), "test samples; take a partition with larger clients, or test them together")


def _checked_like(name: str, domains, beside: str, labels: np.ndarray) -> np.ndarray:
    domains = _checked_labels(name, domains)
    if len(domains) != len(labels):
        raise ValueError(f"{name} must number the domain of each of the {len(labels)} {beside}, got {len(domains)}")
    return domains


def counts(parts: Sequence, labels, num_classes: int) -> torch.Tensor:
    """How many samples of each class each client holds: int64 (clients, num_classes).

    Raises:
        ValueError: parts that are not 1-D integer indices into labels, or labels not below num_classes.
    """
    labels = _checked_labels("labels", labels)
    checks.whole(num_classes=num_classes)
    if labels.max(initial=0) >= num_classes:
        raise ValueError(f"num_classes={num_classes}, but labels go up to {labels.max()}")
    held = positions("parts", parts, len(labels))
    table = [np.bincount(labels[part], minlength=num_classes) for part in held]
    return torch.from_numpy(np.array(table, np.int64).reshape(len(held), num_classes))


def positions(name: str, parts: Iterable, count: int) -> list[np.ndarray]:
    """What every function makes of the clients' samples that it is given: one int64 array (n_k,) a client.

    Args:
        name: of the argument, for messages.
        parts: for each client a 1-D array, tensor or list of whole numbers, of any width and byte order; or a table
            (clients, samples), or anything that gives such arrays in turn.
        count: how many samples there are.

    Raises:
        ValueError: parts of another kind (masks, dicts, fractions, one client's array alone) or positions that are not
            in 0..count-1. It names the client, what it got, and the remedy.
    """
    whole = isinstance(parts, (np.ndarray, torch.Tensor))
    if isinstance(parts, (str, bytes, Mapping, Set)) or not isinstance(parts, Iterable) or whole and parts.ndim == 0:
        remedy = "; take list(parts.values()) of a dict" if isinstance(parts, Mapping) else ""
        raise ValueError(f"{name} must be a list of one index array per client, got {type(parts).__name__}{remedy}")
    return [_positions(f"{name}[{k}]", part, count) for k, part in enumerate(parts)]


def _positions(name: str, part: Any, count: int) -> np.ndarray:
    """One client's positions, checked."""
    if hasattr(part, "indices") and hasattr(part, "dataset"):
        raise ValueError(f"{name} must be an array of positions, got a {type(part).__name__}; give its .indices")
    try:
        found = as_array(part)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be a 1-D array of positions, got {type(part).__name__} ({error})") from error
    if np.ma.is_masked(part):
        raise ValueError(f"{name} has masked entries; give {name}.compressed()")
    if found.dtype == bool or isinstance(part, (list, tuple)) and any(isinstance(v, (bool, np.bool_)) for v in part):
        raise ValueError(
            f"{name} is a mask of {found.size} booleans; it must hold positions: numpy.flatnonzero(mask), or "
            "mask.nonzero().flatten() of a tensor"
        )
    if found.ndim != 1:
        alone = (
            f"; one client's array alone stands in a list: {name.partition('[')[0]}=[array]" if not found.ndim else ""
        )
        raise ValueError(f"{name} must be a 1-D array of positions, got {found.dtype} of shape {found.shape}{alone}")
    if not found.size:
        return np.zeros(0, np.int64)
    whole = found.dtype.kind in "iu" or found.dtype == object and all(map(checks.is_whole, found))
    if not whole:
        raise ValueError(f"{name} must hold whole numbers, positions from 0 to {count - 1}; got {found.dtype}")
    low, high = int(found.min()), int(found.max())
    if low < 0 or high >= count:
        raise ValueError(f"{name} must hold positions from 0 to {count - 1}, got {low} to {high}")
    if high <= 1 and len(found) == count > 2:
        raise ValueError(
            f"{name} holds nothing but 0 and 1, one for each of {count} samples: a mask? It must hold positions: "
            "numpy.flatnonzero(mask)"
        )
    return found.astype(np.int64)


# --- Shared pieces --------------------------------------------------------------------------------------------------


def _cut(members: list[np.ndarray], held: np.ndarray) -> list[np.ndarray]:
    """Give held[k, c] of the samples members[c], in order, to each client k."""
    pieces = [np.split(m, np.cumsum(held[:, c]))[:-1] for c, m in enumerate(members)]  # [class][client]
    return [np.concatenate(own) for own in zip(*pieces, strict=True)]


def _finish(parts: Sequence[np.ndarray], what: str = "samples") -> list[torch.Tensor]:
    empty = [k for k, part in enumerate(parts) if len(part) == 0]
    if empty:
        shown = ", ".join(map(str, empty[:10])) + (", ..." if len(empty) > 10 else "")
        raise ValueError(f"{len(empty)} of {len(parts)} clients ({shown}) would hold no {what}")
    return [torch.from_numpy(np.sort(part).astype(np.int64)) for part in parts]


def _checked_labels(name: str, labels) -> np.ndarray:
    labels = as_array(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be a 1-D tensor or array of integers, got {labels.dtype} of shape {labels.shape}"
        )
    if labels.size and labels.min() < 0:
        raise ValueError(f"{name} must be 0 or more, got {labels.min()}")
    return labels.astype(np.int64)


def _checked(labels, clients: int) -> tuple[np.ndarray, int]:
    labels = _checked_labels("labels", labels)
    checks.whole(clients=clients)
    if clients > len(labels):
        raise ValueError(f"clients={clients}, more than the {len(labels)} samples")
    return labels, int(clients)


def _rng(seed: int) -> np.random.Generator:
    checks.whole(0, seed=seed)
    return np.random.default_rng(int(seed))
