"""Errors cross processes without loss: on the wire, and pickled."""

from __future__ import annotations

import json
import pickle

import pytest

from budget import errors


def tree(root: type[errors.KeepwarmError]) -> list[type[errors.KeepwarmError]]:
    """Every class of the tree."""
    return [root] + [found for child in root.__subclasses__() for found in tree(child)]


CLASSES = [c for c in tree(errors.KeepwarmError) if c.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda c: c.__name__)
def test_every_error_survives_the_wire_and_pickling(kind: type[errors.KeepwarmError]) -> None:
    """Class, message, hint and facts are what they were."""
    error = kind("it broke", hint="mend it", limit_bytes=7, log_tail=["a", "b"], more={"x": None})
    on_the_wire = json.loads(json.dumps(error.to_wire()))
    for copy in (errors.error_from_wire(on_the_wire), pickle.loads(pickle.dumps(error))):
        assert type(copy) is kind
        assert (copy.message, copy.hint, copy.facts) == (error.message, error.hint, error.facts)
        assert str(copy) == "it broke. mend it"


def test_every_error_says_whose_fault_it_is() -> None:
    """The four faults of the docstring; the root alone has none."""
    faults = {kind.fault for kind in CLASSES if kind is not errors.KeepwarmError}
    assert faults == {"caller", "load", "outside", "ours"}


def test_the_docstring_draws_every_class() -> None:
    """The picture of the tree is the tree."""
    drawn = errors.__doc__ or ""
    assert [kind.__name__ for kind in CLASSES if kind.__name__ not in drawn] == []


def test_an_unknown_error_on_the_wire_is_quoted_as_our_bug() -> None:
    """An old client against a new keeper says what it could not read."""
    error = errors.error_from_wire({"error": "Sulked", "message": "no"})
    assert type(error) is errors.InternalError
    assert "Sulked" in str(error)


def test_a_sparse_error_on_the_wire_is_read() -> None:
    """Hint and facts may be missing."""
    error = errors.error_from_wire({"error": "EngineDied", "message": "gone"})
    assert (str(error), error.hint, error.facts) == ("gone", "", {})
