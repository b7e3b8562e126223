"""The four ways in which an input can be wrong, and training that cannot continue.

Every message says what LTXKit got, what it expected and what to do: `got X; expected Y; do Z`.
"""

import unicodedata
from collections.abc import Callable, Generator
from contextlib import contextmanager

LONGEST_LINE = 4000  # characters; names in files have no limit of their own


def printable(text: str) -> str:
    """Text in which control characters, lone surrogates and marks that turn its direction are escapes: names from files
    must not write to a terminal or a page as they like. Tabs and ends of lines stay."""
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(
        character.encode("unicode_escape").decode()
        if character not in "\n\t" and unicodedata.category(character) in hidden
        else character
        for character in text
    )


class LTXKitError(Exception):
    """Base of every error that LTXKit raises on purpose; its message is meant for the user.

    Whatever names from files the message quotes: it is `printable`, and a very long line loses its middle.
    """

    def __str__(self) -> str:
        return printable("\n".join(_shortened(line) for line in super().__str__().split("\n")))


def _shortened(line: str) -> str:
    if len(line) <= LONGEST_LINE:
        return line
    return f"{line[: LONGEST_LINE * 3 // 4]} ... {line[-LONGEST_LINE // 4 :]}"


class ConfigError(LTXKitError, ValueError):
    """A setting, a config value or a combination of them is not valid."""


class WrongNameError(ConfigError, AttributeError, TypeError):
    """An argument or an attribute that does not exist; the message says what to write in its place."""


class CheckpointError(LTXKitError, RuntimeError):
    """A weights file cannot be read, is of another kind, or does not fit the model."""


class ShapeError(LTXKitError, ValueError):
    """A tensor or a requested size has a shape that the model cannot take."""


class UnsupportedError(LTXKitError, RuntimeError):
    """The request is understood, but this installation, device or version cannot do it."""


class CancelledError(LTXKitError, RuntimeError):
    """The work was cancelled, from another thread; nothing is left of it."""


class TrainingError(LTXKitError, RuntimeError):
    """Training cannot continue: the loss is not a number, or the latents collapsed."""


def reason_of(error: BaseException) -> str:
    """What an error says, for the brackets of a sentence: of the system's, without their number and the file."""
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return told or type(error).__name__


@contextmanager
def foreign_errors(refused: Callable[[BaseException], LTXKitError]) -> Generator[None, None, None]:
    """Whatever another library raises inside, as an error of ours; what is ours already stays.

    Some raise plain Exception, and those in Rust pyo3's PanicException where their code gives up. That is a
    BaseException, as an interrupt is; its class has no name to import.
    """
    try:
        yield
    except LTXKitError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise refused(error) from error
