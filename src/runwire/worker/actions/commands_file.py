"""The operator's list of commands, a TOML file: what the action ``command`` may run, with what, and for whom.

::

    [report]
    argv = ["/usr/local/bin/report", "--month={month}", "--", "{customer}"]
    parameters.month = { pattern = "[0-9]{4}-[0-9]{2}" }
    parameters.customer = { max_length = 80 }

A task names a command and gives values, never a path. A value fills (part of) one element of ``argv`` and never
becomes more than that: there is no shell.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError, field_validator
from pydantic import model_validator as check_model

from runwire.domain.errors import SetupError
from runwire.domain.task import ChainId

PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""Where a parameter's value goes in an element of ``argv``. Other braces stand for themselves."""
LONGEST_GRACE = 4.0
"""Seconds: a worker that is stopped waits 5 for its runs to be handed back."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}\z")]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*\z")]
Text = Annotated[str, Field(pattern=r"^[^\x00]*\z")]
Count = Annotated[int, Field(ge=1, le=2**40)]
ExitStatus = Annotated[int, Field(ge=0, le=255)]


class Unfit(ValueError):
    """A value that does not fit its parameter; the message follows the parameter's name."""


class Table(BaseModel):
    """Base of the file's tables: what is unknown, or of another type, is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Parameter(Table):
    """A value that the task gives, and what it has to be like."""

    type: Literal["string", "integer", "number", "boolean"] = "string"
    pattern: str | None = None
    """Regular expression that has to match a string as a whole."""
    enum: list[Any] | None = None
    """The values there are."""
    max_length: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Characters."""
    minimum: float | None = None
    maximum: float | None = None
    default: Any = None
    """Used when the task gives none."""
    required: bool | None = None
    """None: unless there is a default. What is neither given nor has a default is left out of ``argv``."""
    dashes: bool = False
    """Whether an argument may begin with ``-`` because of this value, and so look like an option."""

    @check_model(mode="after")
    def _is_consistent(self) -> Self:
        _check_pattern(self.pattern)
        for value in [*(self.enum or []), *([] if self.default is None else [self.default])]:
            self.text(value)
        if self.required and self.default is not None:
            raise ValueError("default: of no use when the value is required")
        if self.type not in {"integer", "number"} and (self.minimum, self.maximum) != (None, None):
            raise ValueError(f"minimum, maximum: not for the type {self.type}")
        if self.type != "string" and self.pattern is not None:
            raise ValueError(f"pattern: not for the type {self.type}")
        return self

    @property
    def is_required(self) -> bool:
        """Whether the task has to give it."""
        return self.default is None if self.required is None else self.required

    def text(self, value: JsonValue) -> str:
        """The value as it goes into an argument. Raises Unfit."""
        value = self._typed(value)
        if self.enum is not None and value not in self.enum:
            raise Unfit(f"must be one of {', '.join(repr(item) for item in self.enum)}")
        if isinstance(value, int | float):
            if self.minimum is not None and value < self.minimum:
                raise Unfit(f"must be at least {self.minimum:g}")
            if self.maximum is not None and value > self.maximum:
                raise Unfit(f"must be at most {self.maximum:g}")
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if len(text) > self.max_length:
            raise Unfit(f"must have at most {self.max_length} characters")
        if not _is_argument(text):
            raise Unfit("must be text without NUL and without lone surrogates")
        if self.pattern is not None and not re.fullmatch(self.pattern, text):
            raise Unfit(f"must match {self.pattern}")
        return text

    def _typed(self, value: JsonValue) -> str | float | bool:
        """The value, if it is of this type. 3.0 is an integer (JSON Schema validation, section 6.1.1)."""
        match self.type:
            case "string" if isinstance(value, str):
                return value
            case "boolean" if isinstance(value, bool):
                return value
            case "number" if isinstance(value, int | float) and not isinstance(value, bool):
                return value
            case "integer" if isinstance(value, int) and not isinstance(value, bool):
                return value
            case "integer" if isinstance(value, float) and value.is_integer():
                return int(value)
        raise Unfit(f"must be {'an' if self.type == 'integer' else 'a'} {self.type}")


class Limits(Table):
    """What a process may use, each for itself (setrlimit(2)). None: what the worker may."""

    memory: Count | None = None
    """MB of address space."""
    cpu: Count | None = None
    """Seconds of CPU time."""
    open_files: Count | None = None
    file_size: Count | None = None
    """MB of a file it writes."""
    processes: Count | None = None
    """Processes and threads of the worker's user, all of them together; root is not limited."""


class Program(Table):
    """One command of the list."""

    argv: list[Text]
    """The program's absolute path and its arguments, with ``{parameter}`` as an element or a part of one."""
    parameters: dict[Variable, Parameter] = {}
    chains: list[ChainId] | None = None
    """Whose tasks may run it; None: everybody's."""
    env: dict[Variable, Text] = {}
    cwd: str | None = None
    """Where it runs; None: in an empty directory of its own, which is removed afterwards."""
    limits: Limits = Limits()
    success: list[ExitStatus] = [0]
    """The exit statuses that make the run DONE."""
    retry: list[ExitStatus] = []
    """The exit statuses after which another try is worth it, as far as the task's ``retry`` goes."""
    result: Literal["json"] | None = None
    """``json``: the last line of stdout is the result's ``output``."""
    grace: Annotated[float, Field(ge=0, le=LONGEST_GRACE)] = 3
    """Seconds between SIGTERM and SIGKILL when it has to stop."""

    @field_validator("argv")
    @classmethod
    def _is_program(cls, argv: list[str]) -> list[str]:
        if not argv or PLACEHOLDER.search(argv[0]) or not Path(argv[0]).is_absolute():
            raise ValueError("must begin with the absolute path of a program")
        if not Path(argv[0]).is_file() or not os.access(argv[0], os.X_OK):
            raise ValueError(f"{argv[0]} is no program that can be run here")
        return argv

    @field_validator("cwd")
    @classmethod
    def _is_directory(cls, cwd: str | None) -> str | None:
        if cwd is not None and not (Path(cwd).is_absolute() and Path(cwd).is_dir()):
            raise ValueError("must be the absolute path of a directory")
        return cwd

    @field_validator("env")
    @classmethod
    def _leaves_ours_alone(cls, env: dict[str, str]) -> dict[str, str]:
        for name in env:
            if name.startswith("RUNWIRE_"):
                raise ValueError(f"{name} is set by the worker")
        return env

    @check_model(mode="after")
    def _fits_together(self) -> Self:
        named = {name for element in self.argv for name in PLACEHOLDER.findall(element)}
        for name in sorted(named - set(self.parameters)):
            raise ValueError(f"argv: {{{name}}} is none of the parameters")
        for name in sorted(set(self.parameters) - named):
            raise ValueError(f"parameters.{name}: has no place in argv")
        for status in sorted(set(self.success) & set(self.retry)):
            raise ValueError(f"retry: {status} is a success")
        return self

    def is_open_to(self, chain: int) -> bool:
        """Whether tasks of this chain may run it."""
        return self.chains is None or chain in self.chains

    def filled_in(self, arguments: dict[str, JsonValue]) -> list[str]:
        """``argv`` with the values in it. Raises Unfit, with all complaints in one line."""
        complaints = [f"{name}: there is no such parameter" for name in arguments if name not in self.parameters]
        values: dict[str, str | None] = {}
        for name, parameter in self.parameters.items():
            given = arguments.get(name, parameter.default)
            if given is None and (name in arguments or parameter.is_required):
                complaints.append(f"{name}: {'must not be null' if name in arguments else 'is required'}")
            try:
                values[name] = None if given is None else parameter.text(given)
            except Unfit as unfit:
                complaints.append(f"{name}: {unfit}")
        if not complaints:
            argv = [self._element(template, values, complaints) for template in self.argv]
        if complaints:
            raise Unfit("; ".join(f"/target/arguments/{complaint}" for complaint in complaints))
        return [element for element in argv if element is not None]

    def _element(self, template: str, values: dict[str, str | None], complaints: list[str]) -> str | None:
        """One argument; None: a value it needs was not given. It begins with ``-`` only where the list says so."""
        names = PLACEHOLDER.findall(template)
        if any(values[name] is None for name in names):
            return None
        element = PLACEHOLDER.sub(lambda place: values[place[1]] or "", template)
        if element.startswith("-") and not template.startswith("-"):
            complaints.extend(
                f"{name}: must not make the argument begin with a dash"
                for name in names
                if not self.parameters[name].dashes
            )
        return element


_COMMANDS = TypeAdapter(dict[Name, Program])


def read_commands(path: Path) -> dict[str, Program]:
    """The commands of the file by name. Raises SetupError: one line with the file and the key of each mistake."""
    try:
        if path.stat().st_mode & stat.S_IWOTH:
            raise SetupError(f"RUNWIRE_COMMANDS: {path}: everybody may write it, and so run anything")
        found = tomllib.loads(path.read_text(encoding="utf-8"))
        return _COMMANDS.validate_python(found)
    except OSError as error:
        raise SetupError(f"RUNWIRE_COMMANDS: {path}: {error.strerror}") from None
    except ValidationError as invalid:
        complaints = [
            f"{'.'.join(str(part) for part in error['loc'] if part != '[key]')}: "
            f"{error['msg'].removeprefix('Value error, ')}"
            for error in invalid.errors(include_url=False, include_context=False, include_input=False)
        ]
        raise SetupError(f"RUNWIRE_COMMANDS: {path}: {'; '.join(complaints)}") from None
    except ValueError as error:  # no TOML, no UTF-8
        raise SetupError(f"RUNWIRE_COMMANDS: {path}: {error}") from None


def _check_pattern(pattern: str | None) -> None:
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"pattern: is no regular expression: {error}") from None


def _is_argument(text: str) -> bool:
    """Whether execve(2) can take it."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
