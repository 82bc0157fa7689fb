"""Replies whose time must tell nothing wait for the next step, and for the dearest hash where a sign-in is refused."""

import pytest
from argon2 import PasswordHasher

from adapters.foreign_hashes import form_of
from contracts.api import BY_SUBJECT
from handlers.answer_steps import JITTER, MARGIN, AnswerSteps

LOGIN, FORGOT = BY_SUBJECT["users.v1.auth.login"], BY_SUBJECT["users.v1.auth.forgot-password"]
BCRYPT = "$2b$12$abcdefghijklmnopqrstuuabcdefghijklmnopqrstuvwxyzabcde"


@pytest.mark.parametrize(("dearest_ms", "login_s"), [(0, 0.1), (30, 0.1), (34, 0.2), (300, 0.9), (1000, 3.0)])
def test_a_refused_sign_in_waits_for_the_dearest_hash_and_nothing_else_does(dearest_ms: int, login_s: float) -> None:
    steps = AnswerSteps(100)
    steps.dearest_s = dearest_ms / 1000
    assert steps.step_s(LOGIN) == pytest.approx(login_s)
    assert steps.step_s(LOGIN) >= MARGIN * dearest_ms / 1000
    assert steps.step_s(FORGOT) == pytest.approx(0.1)
    assert steps.needed_s(LOGIN) == pytest.approx(login_s * (1 + JITTER))


def test_without_steps_nothing_waits() -> None:
    steps = AnswerSteps(0)
    steps.dearest_s = 1.0
    assert steps.step_s(LOGIN) == 0


@pytest.mark.parametrize(
    ("encoded", "form"),
    [
        (BCRYPT, "$2b$12$"),
        (f"bcrypt${BCRYPT}", "bcrypt$$2b$12$"),
        ("pbkdf2_sha256$600000$salt$" + "A" * 43 + "=", "pbkdf2_sha256$600000$"),
        ("scrypt$16384$salt$8$1$" + "A" * 86 + "==", "scrypt$16384$"),
        (PasswordHasher(time_cost=3, memory_cost=1024, parallelism=2).hash("x"), "$argon2id$v=19$m=1024,t=3,p=2$"),
        ("md5$salt$abc", None),
        ("", None),
    ],
    ids=["bcrypt", "django", "pbkdf2", "scrypt", "argon2", "md5", "none"],
)
def test_the_form_of_a_hash_is_its_kind_and_cost(encoded: str, form: str | None) -> None:
    assert form_of(encoded) == form
