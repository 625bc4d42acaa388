"""Numbers and lists of a command line's options, as types of argparse."""

import argparse
import shlex
from typing import Callable, Iterable, List, Tuple, TypeVar

Value = TypeVar("Value")


def count(least: int) -> Callable[[str], int]:
    """A parser of whole numbers, not below `least`."""
    def parse(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return number

    parse.__name__ = "whole number"  # as argparse calls what it is not
    return parse


def named(form: str, read: Callable[[str], Value], example: str = "") -> Callable[[str], Tuple[str, Value]]:
    """A parser of NAME=..., neither empty.

    Args:
        form: how the option is written, such as NAME=FILE.
        read: makes a value of what stands behind the first =.
        example: what the error shows.
    """
    def parse(text: str) -> Tuple[str, Value]:
        name, _, value = text.partition("=")
        if not (name.strip() and value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {form}" + (f", such as {example}" if example else ""))
        return name.strip(), read(value)
    return parse


def words(text: str) -> List[str]:
    """Parse words as a shell parts them."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {str(error).lower()}") from None


def numbers(text: str) -> List[int]:
    """Parse N,M,..."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give whole numbers with commas between, such as 5,10,20") from None


def decimals(text: str) -> List[float]:
    """Parse X,Y,..."""
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers with commas between, such as 0.8,1,1.2") from None


def listed(known: Iterable[str]) -> Callable[[str], List[str]]:
    """A parser of A,B,... out of `known`."""
    def parse(text: str) -> List[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is unknown: choose among {', '.join(known)}")
        return names
    return parse
