"""Every error of the library, as one tree.

    FxCompressError
    ├── SpecError         a spec that cannot be read, or whose rules contradict each other or the model
    │   └── NotationError the notation does not parse; points at the character
    ├── CaptureError      a model that cannot be captured, or example inputs that do not fit it
    ├── InputError        a call whose arguments break what capture assumed
    ├── PassError         a pass whose requirement, result or answer is wrong; names the passes before it
    ├── ScheduleError     a schedule moved or attached in a way that makes no sense
    ├── ExportError       a file that cannot be written as asked
    ├── CompareError      arms that are not alike, or functions that do not give what is needed
    ├── VerifyError       a file that cannot be compared with the net
    └── LoadError         a model or inputs that a command line names and that cannot be had

A message names the thing in quotes, says what was there instead, and how to mend it.
"""

from __future__ import annotations


class FxCompressError(Exception):
    """Base of every error this library raises on purpose."""


class SpecError(FxCompressError):
    """A spec that cannot be read, or whose rules contradict each other or the model."""


class NotationError(SpecError):
    """The short notation does not parse."""


class CaptureError(FxCompressError):
    """A model that cannot be captured, or example inputs that do not fit it."""


class InputError(FxCompressError):
    """A call whose arguments break what capture assumed."""


class PassError(FxCompressError):
    """A pass whose requirement, result or answer is wrong."""


class ScheduleError(FxCompressError):
    """A schedule moved or attached in a way that makes no sense."""


class ExportError(FxCompressError):
    """A file that cannot be written as asked."""


class CompareError(FxCompressError):
    """Arms that are not alike, or functions that do not give what a comparison or a search needs."""


class VerifyError(FxCompressError):
    """A file that cannot be compared with the net."""


class LoadError(FxCompressError):
    """A model or inputs that a command line names and that cannot be had."""
