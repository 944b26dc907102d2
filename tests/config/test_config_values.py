"""Values as people write them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from shim.config.schema.engine_args import REFUSED, option_name, parse_engine_args
from shim.config.schema.sections import BudgetSection
from shim.config.schema.values import (
    FOREVER,
    Amount,
    parse_amount,
    parse_limit,
    parse_reserve,
    parse_seconds,
    parse_timeout,
    parse_url,
)

FIXED = settings(derandomize=True, deadline=None, max_examples=200)


@pytest.mark.parametrize(
    ("written", "total_bytes", "expected_bytes"),
    [
        (1234, 10, 1234),
        ("6GiB", 10, 6 * 1024**3),
        ("500MB", 10, 500_000_000),
        ("1.5 KiB", 10, 1536),
        ("0B", 10, 0),
        ("80%", 1000, 800),
        ("100%", 7, 7),
        ("12.5%", 1000, 125),
    ],
)
def test_amounts_resolve_to_exact_bytes(
    written: object, total_bytes: int, expected_bytes: int
) -> None:
    """Bytes, binary and decimal units and percentages mean what they say."""
    assert parse_amount(written).resolve(total_bytes) == expected_bytes


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("6G", "unknown unit"),
        ("6", "unit is missing"),
        ("120%", "more than 100%"),
        (-1, "negative"),
        ("-1GiB", "not a number"),
        (2**63, "more bytes"),
        ("99999999999999TiB", "more bytes"),
        (1.5, "not a number of bytes"),
        (True, "not a number of bytes"),
        (None, "not a number of bytes"),
        ("", "not a number"),
    ],
)
def test_impossible_amounts_say_why(written: object, why: str) -> None:
    """An ambiguous, negative or impossible amount is refused with its reason."""
    with pytest.raises(ValueError, match=why):
        parse_amount(written)


@FIXED
@given(st.integers(0, 2**63 - 1))
def test_amounts_survive_being_written_out(amount_bytes: int) -> None:
    """What an amount prints reads back as the same bytes, to the byte."""
    assert parse_amount(str(Amount(fixed_bytes=amount_bytes))) == Amount(fixed_bytes=amount_bytes)


@FIXED
@given(st.one_of(st.text(max_size=20), st.integers(), st.floats(), st.booleans(), st.none()))
def test_parsers_take_or_refuse_anything(value: object) -> None:
    """Whatever TOML can hold is parsed or refused with ValueError; nothing else escapes."""
    for parse in (parse_amount, parse_seconds, parse_timeout, parse_url, parse_engine_args):
        reason = "none"
        try:
            parse(value)
        except ValueError as error:
            reason = str(error)
        assert reason


def test_a_limit_of_nothing_and_a_reserve_of_everything_are_refused() -> None:
    """A limit has to hold something and a reserve has to leave something."""
    for written in (0, "0%", "0GiB"):
        with pytest.raises(ValueError, match="zero"):
            parse_limit(written)
    with pytest.raises(ValueError, match="leaves nothing"):
        parse_reserve("100%")


@pytest.mark.parametrize(
    ("written", "seconds"),
    [(0, 0.0), (2.5, 2.5), ("90", 90.0), ("500ms", 0.5), ("5m", 300.0), ("1h 30m", 5400.0)],
)
def test_durations_are_seconds(written: object, seconds: float) -> None:
    """Numbers are seconds; texts have units that add up."""
    assert parse_seconds(written) == pytest.approx(seconds)


@pytest.mark.parametrize("written", [-1, "-5s", "soon", "5 m", float("nan"), float("inf"), True])
def test_impossible_durations_are_refused(written: object) -> None:
    """Negative, endless and unreadable durations are refused where no time-out is not allowed."""
    with pytest.raises(ValueError, match="not a duration"):
        parse_seconds(written)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (-1, FOREVER),
        (-5, FOREVER),
        ("-1", FOREVER),
        ("-1m", FOREVER),
        ("-5", FOREVER),
        ("-1h 30m", FOREVER),
        ("-0s", 0.0),
        ("1h 30m", 5400.0),
        ("0", 0.0),
        ("24h", 86400.0),
    ],
)
def test_time_outs_are_read_as_users_of_ollama_write_them(written: object, seconds: float) -> None:
    """keep_alive and idle_exit: anything below 0 is no time-out, and blanks may part hours and minutes."""
    assert parse_timeout(written) == pytest.approx(seconds)


@pytest.mark.parametrize("written", ["-", "--1", "-soon", float("-inf"), "-1e9", True])
def test_what_is_negative_and_no_duration_is_refused(written: object) -> None:
    """A mistake is not taken for no time-out."""
    with pytest.raises(ValueError, match="not a duration"):
        parse_timeout(written)


def test_addresses_are_cut_before_v1() -> None:
    """With or without /v1 and slashes the address is the same."""
    for written in ("http://h:8000", "http://h:8000/", "http://h:8000/v1", "http://h:8000/v1/"):
        assert parse_url(written) == "http://h:8000"
    assert parse_url("https://h/proxy/v1") == "https://h/proxy"


@pytest.mark.parametrize(
    "written",
    ["h:8000", "ftp://h", "http://", "http://u:p@h", "http://h/?k=1", "http://h:port", 8000],
)
def test_addresses_that_hide_secrets_or_are_none_are_refused(written: object) -> None:
    """No credentials, queries, other schemes or broken ports."""
    with pytest.raises(ValueError, match=r".+"):
        parse_url(written)


def test_a_budget_never_books_what_is_reserved() -> None:
    """Models get the smaller of the limit and what the reserve leaves, never less than nothing."""
    gib = 1024**3
    budget = BudgetSection.model_validate({"limit": "90%", "reserve": "2GiB"})
    assert budget.limit_bytes(10 * gib) == 8 * gib
    assert budget.limit_bytes(100 * gib) == 90 * gib
    assert budget.limit_bytes(1 * gib) == 0
    assert BudgetSection().reserve_bytes(8 * gib) == 8 * gib // 20
    assert BudgetSection().reserve_bytes(1000 * gib) == 2 * gib


def test_sections_cannot_be_changed() -> None:
    """A configuration that was checked stays as it was checked."""
    with pytest.raises(ValidationError, match="frozen"):
        BudgetSection().max_queue = 3


def test_engine_arguments_that_keepwarm_decides_are_refused_with_the_key_to_use() -> None:
    """Also in the forms llama-server takes: short, with underscores, with an equals sign."""
    for written in ("-c", "--ctx-size", "--ctx_size", "--ctx-size=4096"):
        with pytest.raises(ValueError, match="use context"):
            parse_engine_args(["--rope-scaling", "yarn", written, "4096"])
    with pytest.raises(ValueError, match=r"use path.*use n_gpu_layers"):
        parse_engine_args(["-m", "x.gguf", "-ngl", "4"])


def test_other_engine_arguments_pass_through_in_order() -> None:
    """What keepwarm does not decide reaches llama-server as written; negative numbers are values."""
    written = ["--rope-freq-base", "10000", "--predict", "-1", "--jinja"]
    assert parse_engine_args(written) == tuple(written)
    assert option_name("-1") is None


@pytest.mark.parametrize("written", ["--jinja", [1], ["value"], ["--a\0"], {"--a": 1}])
def test_engine_arguments_have_to_be_a_list_of_texts(written: object) -> None:
    """A text, numbers, a leading value or a NUL byte are refused."""
    with pytest.raises(ValueError, match=r"list of texts|not an option|NUL"):
        parse_engine_args(written)


def test_every_refusal_says_what_to_do() -> None:
    """No refused argument is without a reason."""
    assert all(name.startswith("-") and reason for name, reason in REFUSED.items())
