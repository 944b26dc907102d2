"""Prints what the fuzzing of GGUF headers ran into, below the test results."""

from __future__ import annotations

from collections import Counter

import pytest

CASES: pytest.StashKey[Counter[str]] = pytest.StashKey()


@pytest.fixture(scope="session")
def fuzz_cases(pytestconfig: pytest.Config) -> Counter[str]:
    """Cases by the check that rejected them; `accepted` for the others."""
    return pytestconfig.stash.setdefault(CASES, Counter())


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """One line per outcome of the fuzzing, where it ran."""
    cases = config.stash.get(CASES, None)
    if not cases:
        return
    terminalreporter.section(f"GGUF headers: {cases.total()} mutated cases by rejecting check")
    for check, count in cases.most_common():
        terminalreporter.write_line(f"{count:6} {check}")
