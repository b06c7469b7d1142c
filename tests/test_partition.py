import re

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlib import partition as P

quick = settings(max_examples=40, derandomize=True, deadline=None)
LABELS = torch.from_numpy(np.random.default_rng(0).permutation(np.repeat(np.arange(10), 100)))

METHODS = {
    "iid": lambda y, k, seed: P.iid(y, k, seed=seed),
    "shards": lambda y, k, seed: P.shards(y, k, seed=seed),
    "n_class": lambda y, k, seed: P.n_class(y, k, 3, seed=seed),
    "dirichlet": lambda y, k, seed: P.dirichlet(y, k, 0.5, seed=seed),
    "dirichlet equal": lambda y, k, seed: P.dirichlet(y, k, 0.5, seed=seed, equal_size=True),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def same(a, b):
    return len(a) == len(b) and all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def assert_partition(parts, clients, samples, held):
    """One non-empty, sorted int64 tensor a client; disjoint; `held` indices of range(samples) in all."""
    assert len(parts) == clients and all(len(p) for p in parts)
    assert all(p.dtype == torch.int64 and p.ndim == 1 and (p.diff() > 0).all() for p in parts)
    pooled = torch.cat(parts).tolist()
    assert len(set(pooled)) == len(pooled) == held
    assert min(pooled) >= 0 and max(pooled) < samples


# --- Domains --------------------------------------------------------------------------------------------------------

DOMAINS = torch.from_numpy(np.random.default_rng(1).permutation(np.repeat(np.arange(4), (40, 71, 25, 64))))


@quick
@given(each=st.integers(1, 25), mix=st.floats(0, 1), seed=st.integers(0, 2**40))
def test_by_domain_is_a_partition(each, mix, seed):
    parts = P.by_domain(DOMAINS, each, mix, seed)
    assert_partition(parts, 4 * each, 200, 200)
    assert [len(p) for p in parts] == [len(p) for p in P.by_domain(DOMAINS, each)]


@pytest.mark.parametrize("each", [1, 3])
def test_by_domain_keeps_domains_apart(each):
    parts = P.by_domain(DOMAINS, each, seed=5)
    assert [set(DOMAINS[p].tolist()) for p in parts] == [{k // each} for k in range(4 * each)]
    for d in range(4):
        sizes = [len(p) for p in parts[d * each : (d + 1) * each]]
        assert max(sizes) - min(sizes) <= 1
    assert same(parts, P.by_domain(DOMAINS.numpy(), each, seed=5))


def test_by_domain_needs_domains():
    with pytest.raises(ValueError, match="this data set has one domain only"):
        P.by_domain(None)


def test_by_domain_mixes_the_share_it_is_told():
    parts = P.by_domain(DOMAINS, mix=0.5, seed=0)
    own = [(DOMAINS[p] == d).double().mean().item() for d, p in enumerate(parts)]
    sizes = DOMAINS.bincount() / 200
    assert own == pytest.approx((0.5 + 0.5 * sizes).tolist(), abs=0.12)  # half its own, half a sample of all
    mixed = P.by_domain(DOMAINS, mix=1.0, seed=0)
    assert all((DOMAINS[p].bincount(minlength=4) > 0).all() for p in mixed)
    assert not same(parts, P.by_domain(DOMAINS, mix=0.5, seed=1))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"mix": 1.5}, "mix must lie in \\[0, 1\\], got 1.5"),
        ({"mix": float("nan")}, "mix must lie"),
        ({"mix": "half"}, "mix must lie"),
        ({"clients_per_domain": 0}, "clients must be|clients_per_domain"),
        ({"clients_per_domain": 26}, "clients_per_domain=26, but domain 2 has only 25 samples"),
        ({"domains": [0, 0, 2, 2]}, "domain 1 has only 0 samples"),
        ({"domains": []}, "1-D|samples"),
        ({"domains": [0.5, 1.0]}, "domains must be a 1-D tensor or array of integers"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_by_domain_refuses(wrong, message):
    with pytest.raises(ValueError, match=message):
        P.by_domain(**{"domains": DOMAINS, **wrong})


# --- Every method ---------------------------------------------------------------------------------------------------


@every_method
@quick
@given(clients=st.integers(1, 20), seed=st.integers(0, 2**40))
def test_is_a_partition(method, clients, seed):
    parts = method(LABELS, clients, seed)
    held = 1000
    if method is METHODS["dirichlet equal"]:
        held -= 1000 % clients  # equal sizes leave a remainder
    if method is METHODS["n_class"]:
        held = min(1000, clients * 3 * 100)  # fewer places than classes leave classes out
    assert_partition(parts, clients, 1000, held)


@every_method
def test_seed_decides(method):
    assert same(method(LABELS, 10, 3), method(LABELS, 10, 3))
    assert not same(method(LABELS, 10, 3), method(LABELS, 10, 4))


@every_method
def test_labels_may_be_array_or_tensor_of_any_integer_type(method):
    want = method(LABELS, 10, 0)
    assert same(want, method(LABELS.numpy(), 10, 0))
    assert same(want, method(LABELS.to(torch.uint8), 10, 0))
    assert same(want, method(LABELS.tolist(), 10, 0))


@every_method
def test_global_random_state_is_neither_used_nor_changed(method):
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), LABELS.clone()
    first = method(LABELS, 10, 0)
    assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(LABELS, before[2])
    torch.manual_seed(1)
    np.random.seed(1)
    assert same(first, method(LABELS, 10, 0))


@every_method
@pytest.mark.parametrize(
    "labels",
    [
        torch.zeros(10, 2, dtype=torch.int64),
        torch.zeros(10),
        torch.zeros(10, dtype=bool),
        np.array(3),
        np.zeros(10),
        torch.arange(-1, 9),
        ["cat"] * 10,
    ],
)
def test_refuses_labels(method, labels):
    with pytest.raises(ValueError, match="labels must be"):
        method(labels, 2, 0)


@every_method
@pytest.mark.parametrize(
    "clients, message",
    [
        (0, "clients must be"),
        (-3, "clients must be"),
        (2.5, "clients must be"),
        (True, "clients must be"),
        (1001, "more than the 1000 samples"),
    ],
)
def test_refuses_clients(method, clients, message):
    with pytest.raises(ValueError, match=message):
        method(LABELS, clients, 0)


@every_method
@pytest.mark.parametrize("seed", [-1, 0.5, None])
def test_refuses_seed(method, seed):
    with pytest.raises(ValueError, match="seed must be"):
        method(LABELS, 2, seed)


@every_method
def test_refuses_no_labels(method):
    with pytest.raises(ValueError, match="more than the 0 samples"):
        method(torch.zeros(0, dtype=torch.int64), 1, 0)


# --- iid and shards -------------------------------------------------------------------------------------------------


def test_iid_sizes_differ_by_at_most_one():
    assert sorted(map(len, P.iid(LABELS, 7))) == [142, 143, 143, 143, 143, 143, 143]


def test_iid_does_not_look_at_labels():
    assert same(P.iid(LABELS, 7), P.iid(torch.zeros(1000, dtype=torch.int64), 7))


def test_shards_follow_mcmahan():
    parts = P.shards(LABELS, 50, shards_per_client=2, seed=1)
    order = np.argsort(LABELS.numpy(), kind="stable").reshape(100, 10)
    shard_of = {tuple(sorted(shard)) for shard in order.tolist()}
    for part in parts:
        assert len(part) == 20
        own = [shard for shard in shard_of if set(shard) <= set(part.tolist())]
        assert len(own) == 2
    assert (P.counts(parts, LABELS, 10) > 0).sum(1).max() == 2


def test_shards_refuses_more_shards_than_samples():
    with pytest.raises(ValueError, match="clients \\* shards_per_client = 1002 shards"):
        P.shards(LABELS, 501, 2)
    with pytest.raises(ValueError, match="shards_per_client must be"):
        P.shards(LABELS, 5, 0)


# --- n_class --------------------------------------------------------------------------------------------------------


@quick
@given(clients=st.integers(1, 30), classes=st.integers(1, 12), n=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_n_class_gives_n_distinct_classes_and_equal_chunks(clients, classes, n, seed):
    n = min(n, classes)
    labels = torch.arange(classes * 61) % classes
    parts = P.n_class(labels, clients, n, seed=seed)
    table = P.counts(parts, labels, classes)
    chunks = (table > 0).sum(0)
    assert ((table > 0).sum(1) == n).all()
    assert chunks.max() - chunks.min() <= 1 and chunks.sum() == clients * n
    for c in range(classes):
        held = table[:, c][table[:, c] > 0]
        if chunks[c]:
            assert held.sum() == 61 and held.max() - held.min() <= 1
    assert_partition(parts, clients, len(labels), int((chunks > 0).sum()) * 61)


@pytest.mark.parametrize("clients, n", [(10, 9), (7, 10), (40, 5), (3, 8), (100, 2)])
def test_n_class_always_succeeds_where_dealing_at_random_would_clash(clients, n):
    for seed in range(20):
        table = P.counts(P.n_class(LABELS, clients, n, seed=seed), LABELS, 10)
        assert ((table > 0).sum(1) == n).all() and table.sum() == 1000


def test_n_class_chunks_are_consecutive():
    labels = LABELS.numpy()
    parts = P.n_class(LABELS, 20, 2, seed=5)
    for c in range(10):
        members = np.flatnonzero(labels == c)
        chunks = {tuple(chunk) for chunk in members.reshape(4, 25).tolist()}
        held = {tuple(p[LABELS[p] == c].tolist()) for p in parts} - {()}
        assert held == chunks


def test_n_class_deals_every_pair_of_classes():
    """Which classes meet is random: over seeds every pair of classes is seen on some client, about equally often."""
    seen = np.zeros((10, 10), dtype=int)
    for seed in range(200):
        table = P.counts(P.n_class(LABELS, 10, 2, seed=seed), LABELS, 10).numpy() > 0
        seen += table.T.astype(int) @ table.astype(int)
    pairs = seen[np.triu_indices(10, 1)]
    assert pairs.sum() == 2000  # 45 pairs, 44 times each on average
    assert pairs.min() > 20 and pairs.max() < 75


def test_n_class_leaves_classes_out_only_if_there_are_too_few_places():
    table = P.counts(P.n_class(LABELS, 3, 2, seed=0), LABELS, 10)
    assert (table.sum(0) > 0).sum() == 6 and (table.sum(1) == 200).all()


def test_n_class_counts_the_classes_present():
    labels = torch.tensor([3, 3, 7, 7, 7, 7])  # numbers need not be 0..C-1
    table = P.counts(P.n_class(labels, 2, 2), labels, 8)
    assert table[:, 3].tolist() == [1, 1] and table[:, 7].tolist() == [2, 2]


def test_n_class_refuses():
    with pytest.raises(ValueError, match="got n=11 with 10 classes"):
        P.n_class(LABELS, 10, 11)
    with pytest.raises(ValueError, match="n must be"):
        P.n_class(LABELS, 10, 0)
    with pytest.raises(ValueError, match="class 1 has 3 samples, too few for the 5 chunks"):
        P.n_class(torch.tensor([0] * 50 + [1] * 3), 10, 1)


# --- dirichlet ------------------------------------------------------------------------------------------------------


def concentration(parts):
    """Mean over clients of the largest class share: 0.1 when uniform over 10 classes, 1 with one class a client."""
    table = P.counts(parts, LABELS, 10).double()
    return float((table / table.sum(1, keepdim=True)).max(1).values.mean())


@pytest.mark.parametrize("equal_size", [False, True])
def test_dirichlet_beta_sets_the_skew(equal_size):
    levels = [
        np.mean([concentration(P.dirichlet(LABELS, 10, beta, seed, equal_size)) for seed in range(5)])
        for beta in (0.01, 0.1, 1.0, 10.0, 1000.0)
    ]
    assert levels == sorted(levels, reverse=True)
    # With equal sizes clients that favour the same class share it and fill up with others, so the skew is bounded.
    assert levels[0] > (0.5 if equal_size else 0.7) and levels[-1] < 0.2


def test_dirichlet_shares_have_the_moments_of_the_distribution():
    """A share of Dir(beta 1_K) has mean 1/K and variance (1/K)(1 - 1/K) / (K beta + 1)."""
    beta, clients = 2.0, 5
    shares = torch.cat([P.counts(P.dirichlet(LABELS, clients, beta, seed), LABELS, 10) for seed in range(60)]) / 100
    assert float(shares.mean()) == pytest.approx(1 / clients, abs=1e-6)
    assert float(shares.var()) == pytest.approx(0.2 * 0.8 / (clients * beta + 1), rel=0.1)


def test_draw_follows_each_clients_weights():
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(4), size=300) * (rng.random((300, 4)) > 0.2)  # with struck-out classes
    weights[7] = 0  # nothing left: takes what there is, in proportion
    left = np.array([0, 10, 0, 30])
    drawn = P._draw(weights.copy(), left, np.repeat(np.arange(300), 4000), rng).reshape(300, 4000)
    weights[weights.sum(1) == 0] = left
    want = weights / weights.sum(1, keepdims=True)
    freq = np.stack([(drawn == c).mean(1) for c in range(4)], axis=1)
    assert (freq[want == 0] == 0).all()
    assert np.abs(freq - want).max() < 5 * 0.5 / np.sqrt(4000)  # five binomial standard deviations


def sequential_reference(sizes, prior, turns, rng):
    """The same process, one sample at a time: redraw until the class is not empty."""
    left, held = sizes.copy(), np.zeros_like(prior, dtype=int)
    for k in turns:
        while left[c := rng.choice(len(sizes), p=prior[k])] == 0:
            pass
        left[c] -= 1
        held[k, c] += 1
    return held


def test_dirichlet_equal_size_agrees_with_drawing_one_at_a_time():
    """Drawing in blocks up to the exhaustion of a class must be the sequential process, in distribution."""
    sizes, prior, runs = np.array([6, 9, 30]), np.array([[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.1, 0.1, 0.8]]), 300

    class Fixed:
        """A generator that always draws the same priors."""

        def __init__(self, seed):
            self.rng = np.random.default_rng(seed)

        def dirichlet(self, *_, **__):
            return prior

        def __getattr__(self, name):
            return getattr(self.rng, name)

    blocks = np.stack([P._equal_counts(sizes, 3, 1.0, Fixed(s)) for s in range(runs)])
    single = []
    for seed in range(runs):
        rng = np.random.default_rng(10_000 + seed)
        single.append(sequential_reference(sizes, prior, rng.permutation(np.repeat(np.arange(3), 15)), rng))
    single = np.stack(single)
    assert (blocks.sum(2) == 15).all() and (blocks.sum(1) == sizes).all()
    error = np.sqrt((blocks.var(0) + single.var(0)) / runs)
    assert (np.abs(blocks.mean(0) - single.mean(0)) < 4 * error + 1e-9).all()


@pytest.mark.parametrize("beta", [1e-300, 1e-8, 1e-3, 1e15, 1e308])
def test_dirichlet_extreme_beta(beta):
    parts = P.dirichlet(LABELS, 10, beta, equal_size=True)
    assert_partition(parts, 10, 1000, 1000)
    assert {len(p) for p in parts} == {100}
    if beta > 1:
        assert_partition(P.dirichlet(LABELS, 10, beta), 10, 1000, 1000)
        assert (P.counts(P.dirichlet(LABELS, 10, beta), LABELS, 10) - 10).abs().max() <= 1


def test_dirichlet_min_size():
    small = [min(map(len, P.dirichlet(LABELS, 10, 0.1, seed))) for seed in range(10)]
    large = [min(map(len, P.dirichlet(LABELS, 10, 0.1, seed, min_size=40))) for seed in range(10)]
    assert min(small) < 40 <= min(large)


def test_dirichlet_gives_up_and_says_why():
    with pytest.raises(ValueError, match="clients=50 at least min_size=15 .* beta=0.01"):
        P.dirichlet(LABELS, 50, 0.01, min_size=15)
    with pytest.raises(ValueError, match="min_size=21 for clients=50 needs 1050 samples"):
        P.dirichlet(LABELS, 50, 0.01, min_size=21)
    with pytest.raises(ValueError, match="min_size must be"):
        P.dirichlet(LABELS, 50, 0.01, min_size=0)


@pytest.mark.parametrize("beta", [0, -1.0, float("nan"), float("inf"), "0.1", None, True])
@pytest.mark.parametrize("equal_size", [False, True])
def test_dirichlet_refuses_beta(beta, equal_size):
    with pytest.raises(ValueError, match="beta must be a positive finite number"):
        P.dirichlet(LABELS, 5, beta, equal_size=equal_size)


# --- like and counts ------------------------------------------------------------------------------------------------


@quick
@given(clients=st.integers(1, 8), beta=st.sampled_from([0.3, 1.0, 10.0]), seed=st.integers(0, 1000))
def test_like_follows_training_shares_within_one_sample(clients, beta, seed):
    test_labels = torch.from_numpy(np.random.default_rng(seed).integers(0, 10, 500))
    parts = P.dirichlet(LABELS, clients, beta, seed=seed, min_size=20)
    test_parts = P.like(parts, LABELS, test_labels, seed=seed)
    assert_partition(test_parts, clients, 500, 500)
    trained = P.counts(parts, LABELS, 10).double()
    exact = trained / trained.sum(0) * torch.bincount(test_labels, minlength=10)
    tested = P.counts(test_parts, test_labels, 10)
    assert ((tested - exact).abs() < 1).all()
    assert (tested[trained == 0] == 0).all()


def test_like_rounds_by_largest_remainder():
    labels = torch.zeros(10, dtype=torch.int64)
    parts = [torch.arange(0, 5), torch.arange(5, 8), torch.arange(8, 10)]  # shares .5, .3, .2 of 4: 2, 1.2, 0.8
    assert [len(p) for p in P.like(parts, labels, torch.zeros(4, dtype=torch.int64))] == [2, 1, 1]


def test_like_is_exact_for_equal_chunks_and_leaves_out_classes_nobody_holds():
    parts = P.n_class(LABELS, 3, 2, seed=0)
    test_labels = torch.arange(200) % 10
    tested, trained = P.counts(P.like(parts, LABELS, test_labels), test_labels, 10), P.counts(parts, LABELS, 10)
    assert torch.equal(tested * 5, trained) and tested.sum() == 120


def test_like_seed_decides():
    parts, test_labels = P.dirichlet(LABELS, 5, 1.0), torch.arange(200) % 10
    assert same(P.like(parts, LABELS, test_labels, seed=1), P.like(parts, LABELS, test_labels, seed=1))
    assert not same(P.like(parts, LABELS, test_labels, seed=1), P.like(parts, LABELS, test_labels, seed=2))


def test_like_names_clients_left_without_test_samples():
    with pytest.raises(ValueError, match=r"1 of 2 clients \(1\) would hold no test samples"):
        P.like([torch.arange(0, 9), torch.tensor([9])], torch.zeros(10, dtype=torch.int64), torch.tensor([0]))
    with pytest.raises(ValueError, match="test_labels must be"):
        P.like([torch.arange(0, 9)], torch.zeros(10, dtype=torch.int64), torch.zeros(3))


@quick
@given(
    per_domain=st.integers(1, 3),
    mix=st.sampled_from([0.0, 0.0, 0.3, 1.0]),
    kinds=st.integers(1, 4),
    classes=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_like_with_domains_shares_out_each_class_of_each_domain(per_domain, mix, kinds, classes, seed):
    rng = np.random.default_rng(seed)
    domains, test_domains = (np.sort(rng.permutation(n) % kinds) for n in (600, 300))
    labels, test_labels = rng.integers(0, classes, 600), rng.integers(0, classes, 300)
    parts = P.by_domain(domains, per_domain, mix, seed)
    tests = P.like(parts, labels, test_labels, seed, domains, torch.from_numpy(test_domains))
    assert len(torch.cat(tests).unique()) == len(torch.cat(tests)) <= 300
    for d in range(kinds):
        for c in range(classes):
            held = np.array([((domains[p] == d) & (labels[p] == c)).sum() for p in parts])
            got = np.array([((test_domains[p] == d) & (test_labels[p] == c)).sum() for p in tests])
            there = ((test_domains == d) & (test_labels == c)).sum() if held.any() else 0
            assert got.sum() == there and (np.abs(got - there * held / max(1, held.sum())) < 1).all()


def test_like_with_domains_tests_each_client_on_its_own_domain():
    domains, test_domains, labels = torch.arange(60) // 20, torch.arange(30) // 10, torch.arange(60) % 2
    tests = P.like(P.by_domain(domains), labels, labels[:30], 0, domains, test_domains)
    assert same(tests, P.by_domain(test_domains))
    one = torch.zeros(60, dtype=torch.int64)  # one domain is none: the same draw
    far = P.like(P.by_domain(domains), labels, labels[:30], 0, 10**9 * domains, 10**9 * test_domains)
    assert same(far, tests)  # numbers need not follow each other
    parts = P.iid(labels, 3)
    assert same(P.like(parts, labels, labels[:30]), P.like(parts, labels, labels[:30], 0, one, one[:30]))


@pytest.mark.parametrize(
    "domains, message",
    [
        ({"domains": torch.zeros(1000, dtype=torch.int64)}, "domains needs test_domains"),
        ({"test_domains": torch.zeros(20, dtype=torch.int64)}, "test_domains needs domains"),
        ({"domains": [0] * 999, "test_domains": [0] * 20}, "domains must number .* each of the 1000 labels, got 999"),
        ({"domains": [0] * 1000, "test_domains": [0]}, "test_domains must number .* each of the 20 test_labels, got 1"),
        ({"domains": [0.5] * 1000, "test_domains": [0] * 20}, "domains must be a 1-D tensor or array of integers"),
        ({"domains": [0] * 1000, "test_domains": [-1] * 20}, "test_domains must be 0 or more, got -1"),
    ],
)
def test_like_refuses_domains(domains, message):
    with pytest.raises(ValueError, match=message):
        P.like(P.iid(LABELS, 2), LABELS, torch.arange(20) % 10, **domains)


@quick
@given(clients=st.integers(1, 20), seed=st.integers(0, 1000))
def test_counts_agrees_with_a_plain_loop(clients, seed):
    parts = P.dirichlet(LABELS, clients, 0.5, seed=seed)
    table = P.counts(parts, LABELS, 12)
    assert table.dtype == torch.int64 and table.shape == (clients, 12)
    assert table.sum(1).tolist() == [len(p) for p in parts]
    want = [[sum(int(LABELS[i]) == c for i in p) for c in range(12)] for p in parts]
    assert table.tolist() == want


def test_counts_refuses():
    with pytest.raises(ValueError, match=r"parts\[1\] must hold positions from 0 to 999, got 1000 to 1000"):
        P.counts([torch.tensor([0]), torch.tensor([1000])], LABELS, 10)
    with pytest.raises(ValueError, match=r"parts\[0\] must hold positions from 0 to 999, got -1"):
        P.counts([torch.tensor([-1])], LABELS, 10)
    with pytest.raises(ValueError, match=r"parts\[0\] must hold whole numbers, .*; got float32"):
        P.counts([torch.tensor([0.5])], LABELS, 10)
    with pytest.raises(ValueError, match="num_classes=9, but labels go up to 9"):
        P.counts([torch.tensor([0])], LABELS, 9)


# --- one reading of parts, wherever they are given ---

WIDTHS = [
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    ">i2",
    ">i4",
    ">u4",
    ">i8",
    ">u8",
    "O",
]


@given(st.lists(st.lists(st.integers(0, 99), max_size=8), max_size=5), st.sampled_from(WIDTHS))
@settings(max_examples=150, deadline=None)
def test_positions_of_any_width_are_exact(parts, dtype):
    wanted = [np.array(part, np.int64) for part in parts]
    for given_as in (
        [np.array(part, dtype) for part in parts],
        (np.array(part, dtype) for part in parts),
        [np.array(part * 2, dtype)[: len(part)] for part in parts],
        parts,
        [tuple(part) for part in parts],
        [torch.tensor(part, dtype=torch.int64) for part in parts],
        [pd.Index(part, dtype="int64") for part in parts],
    ):
        found = P.positions("parts", given_as, 100)
        assert [part.dtype for part in found] == [np.dtype(np.int64)] * len(parts)
        assert all(map(np.array_equal, found, wanted)) and len(found) == len(wanted)


@given(st.integers(1, 5), st.integers(1, 6), st.sampled_from(WIDTHS))
@settings(max_examples=30, deadline=None)
def test_a_table_is_a_list_of_its_rows(clients, each, dtype):
    table = np.arange(clients * each).reshape(clients, each)
    for rows in (table.astype(dtype), torch.from_numpy(table), table.tolist(), range(0)):
        found = P.positions("parts", rows, 100)
        assert np.array_equal(np.array(found).reshape(-1), table.ravel() if len(rows) else [])


JUNK = {
    "a mask": (np.arange(10) < 5, "is a mask of 10 booleans; .*flatnonzero"),
    "a mask of torch": (torch.arange(10) < 5, "is a mask of 10 booleans; .*flatnonzero"),
    "a list of booleans": ([True, False], "is a mask of 2 booleans"),
    "a mask of numbers": (np.arange(10, dtype=np.uint8) // 5, "nothing but 0 and 1, .* a mask"),
    "a mixed list": ([True, 3], "is a mask"),
    "fractions": ([0.0, 1.0], "must hold whole numbers, positions from 0 to 9; got float64"),
    "words": (["1", "2"], "must hold whole numbers"),
    "fractions as objects": (np.array([1, 2.5], object), "must hold whole numbers"),
    "booleans as objects": (np.array([True, 2], object), "must hold whole numbers"),
    "half of torch": (torch.tensor([1.0], dtype=torch.bfloat16), "must (be|hold)"),
    "beyond int64": (np.array([2**63], np.uint64), "must hold positions from 0 to 9, got 9223372036854775808"),
    "beyond uint64": ([2**70], "must hold positions from 0 to 9, got 1180591620717411303424"),
    "negative": ([-1], "must hold positions from 0 to 9, got -1 to -1"),
    "too large": ([3, 10], "must hold positions from 0 to 9, got 3 to 10"),
    "a table": (np.zeros((2, 2), int), r"must be a 1-D array of positions, got int64 of shape \(2, 2\)"),
    "ragged": ([[1, 2], [3]], "must be a 1-D array of positions"),
    "one number": (3, "must be a 1-D array of positions, .*stands in a list: parts=.array."),
    "nothing": (None, "must be a 1-D array of positions"),
    "masked": (np.ma.masked_array([1, 2], [True, False]), "has masked entries; give .*compressed"),
    "a subset": (torch.utils.data.Subset([0] * 10, [1, 2]), "got a Subset; give its .indices"),
}


@pytest.mark.parametrize("part, message", JUNK.values(), ids=JUNK)
def test_positions_of_another_kind_are_refused(part, message):
    for more, name in (([], "parts[0]"), ([[1, 2]], "parts[1]")):
        with pytest.raises(ValueError, match="^" + re.escape(name) + " .*" + message):
            P.positions("parts", [*more, part], 10)
        with pytest.raises(ValueError, match="^" + re.escape(name)):
            P.counts([*more, part], np.zeros(10, int), 1)


@pytest.mark.parametrize("parts", [None, 3, "0123", {0: [1], 1: [2]}, {1, 2}, np.array(3), torch.tensor(3)])
def test_parts_of_another_kind_are_refused(parts):
    with pytest.raises(ValueError, match="^test_parts must be a list of one index array per client, got"):
        P.positions("test_parts", parts, 10)


@every_method
def test_a_gigantic_cohort_is_still_quick(method):
    labels = torch.arange(50_000) % 100
    assert len(method(labels, 400, 0)) == 400
