"""Tokens of workers."""

import pytest

from lighten_service.jobs.errors import Unauthenticated
from lighten_service.jobs.tokens import LaunchClaims, SessionClaims, TokenSigner, make_secret

LAUNCH = LaunchClaims("job", 2)
SESSION = SessionClaims("job", 3, 2, "boot:1:2", expires=100.0)


@pytest.fixture
def signer() -> TokenSigner:
    return TokenSigner(make_secret())


def test_tokens_carry_their_claims(signer: TokenSigner) -> None:
    assert signer.verify_launch(signer.launch(LAUNCH)) == LAUNCH
    assert signer.verify_session(signer.session(SESSION), now=99.9) == SESSION


def test_session_token_expires(signer: TokenSigner) -> None:
    with pytest.raises(Unauthenticated) as caught:
        signer.verify_session(signer.session(SESSION), now=100.0)
    assert caught.value.reason == "TOKEN_EXPIRED"


def test_kinds_are_not_exchanged(signer: TokenSigner) -> None:
    with pytest.raises(Unauthenticated):
        signer.verify_launch(signer.session(SESSION))
    with pytest.raises(Unauthenticated):
        signer.verify_session(signer.launch(LAUNCH), now=0.0)


@pytest.mark.parametrize("change", ["", ".", "x", "ä.ö", "a.b", "e30.e30", "\ud800.a"])
def test_anything_else_is_refused(signer: TokenSigner, change: str) -> None:
    with pytest.raises(Unauthenticated):
        signer.verify_launch(change)


def test_every_character_counts(signer: TokenSigner) -> None:
    token = signer.launch(LAUNCH)
    payload = token.partition(".")[0]
    for position in range(len(payload)):
        other = "A" if token[position] != "A" else "B"
        with pytest.raises(Unauthenticated):
            signer.verify_launch(token[:position] + other + token[position + 1 :])


def test_another_key_is_another_server(signer: TokenSigner) -> None:
    with pytest.raises(Unauthenticated):
        TokenSigner(make_secret()).verify_launch(signer.launch(LAUNCH))
