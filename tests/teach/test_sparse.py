"""What is kept of a distribution: ids exactly, probabilities nearly, in the bytes that were promised."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.teach import sparse


def logits(rows: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


@settings(max_examples=60, deadline=None)
@given(vocabulary=st.integers(2, 70_000), count=st.integers(1, 80), seed=st.integers(0, 9))
def test_the_likeliest_tokens_come_back(vocabulary: int, count: int, seed: int) -> None:
    how = sparse.kind(f"top:{count}", vocabulary)
    given_TV = logits(3, vocabulary, seed)
    records = sparse.encode(given_TV, how)
    assert records.shape == (3, how.size) and records.dtype == torch.uint8
    ids, log_p = sparse.decode(records, how)
    exact = given_TV.log_softmax(-1)
    wanted = exact.topk(how.count).values.sort(-1).values
    torch.testing.assert_close(exact.gather(1, ids).sort(-1).values, wanted)  # ids up to ties
    assert all(len(set(row)) == how.count and row == sorted(row) for row in ids.tolist())
    torch.testing.assert_close(log_p.logsumexp(-1), wanted.logsumexp(-1), atol=2e-3, rtol=0)


def test_it_costs_147_bytes_a_token_and_almost_nothing_of_the_distribution() -> None:
    how = sparse.kind("top:64", 50_257)
    given_TV = logits(50, 50_257)
    ids, log_p = sparse.decode(sparse.encode(given_TV, how), how)
    exact = given_TV.log_softmax(-1)
    known = exact.gather(1, ids)
    missing, kept = 1 - known.exp().sum(-1), 1 - log_p.exp().sum(-1)
    kl = (known.exp() * (known - log_p)).sum(-1) + missing * (missing / kept).log()
    assert how.size == 147 and float(kl.max()) < 0.002 and float(kl.min()) > -1e-4


def test_a_certain_teacher_and_padding_rows_are_no_special_case() -> None:
    sure = torch.full((1, 500), -1e4)
    sure[0, 7] = 1e4
    how = sparse.kind("top:8", 300)  # the last 200 rows pad the matrix
    sure[0, 400] = 5e4
    ids, log_p = sparse.decode(sparse.encode(sure, how), how)
    assert 7 in ids[0].tolist() and max(ids[0].tolist()) < 300
    assert float(log_p[0, ids[0].tolist().index(7)]) == pytest.approx(0, abs=1e-3)


def test_draws_are_an_unbiased_estimate() -> None:
    """The mean of many samples is the distribution: each probability within five standard errors."""
    how, rows = sparse.kind("sampled:32", 40), 4000
    given_V = logits(1, 40)[0]
    ids, log_p = sparse.decode(sparse.encode(given_V.expand(rows, -1), how, torch.Generator().manual_seed(1)), how)
    total = torch.zeros(40).scatter_add_(0, ids.flatten(), log_p.exp().flatten()) / rows
    p = given_V.softmax(-1)
    assert torch.all((total - p).abs() <= 5 * (p * (1 - p) / (rows * 32)).sqrt() + 1e-6)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(rows))


def test_the_same_seed_draws_the_same() -> None:
    how = sparse.kind("sampled:16", 100)
    first, second = (sparse.encode(logits(4, 100), how, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
