"""Errors as a user meets them: message, exit code, and the way across Ray."""

import pickle

import pytest

from vitrail.errors import DataError, UnknownNameError, UsageError, exit_codes


class WrapperError(Exception):
    """Stands for what Ray wraps an error in."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__("a remote traceback")
        self.cause = cause


def test_unknown_name_suggests_the_closest() -> None:
    assert "did you mean 'total_steps'?" in str(UnknownNameError("field", "total_stepz", ["total_steps", "seed"]))


def test_unknown_name_lists_all_when_none_is_close() -> None:
    assert "known: total_steps, seed" in str(UnknownNameError("field", "xyz", ["total_steps", "seed"]))


def test_error_survives_pickling_with_its_message() -> None:
    error = UnknownNameError("recipe", "upernet", ["a", "b"])
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize(("error", "code"), [(UsageError("wrong"), 2), (DataError("bad"), 1)])
def test_exit_code_follows_the_kind_of_error(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited, exit_codes():
        raise error
    assert exited.value.code == code
    assert capsys.readouterr().err == f"error: {error}\n"


def test_error_inside_a_wrapper_is_found() -> None:
    with pytest.raises(SystemExit) as exited, exit_codes():
        raise WrapperError(WrapperError(UsageError("deep")))
    assert exited.value.code == 2


def test_unexpected_error_keeps_its_traceback() -> None:
    with pytest.raises(KeyError), exit_codes():
        raise KeyError("a bug")
