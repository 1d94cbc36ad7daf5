"""What a manifest says of its command line: counts of tokens yes, tokens that open doors no."""

import pytest

from dpa.lineage import without_secrets


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["--hub_token", "hf_abc", "--batch", "8"], ["--hub_token", "...", "--batch", "8"]),
        (["--push_to_hub_token=hf_abc"], ["--push_to_hub_token=..."]),
        (["--api-key", "sk-1", "--Secret=x"], ["--api-key", "...", "--Secret=..."]),
        (["--text-tokens", "20", "--max-new-tokens=16"], ["--text-tokens", "20", "--max-new-tokens=16"]),
        (["token", "plain"], ["token", "plain"]),
        (["--hub_token"], ["--hub_token"]),
    ],
)
def test_secrets_are_left_out_and_counts_kept(given, kept):
    assert without_secrets(given) == kept
