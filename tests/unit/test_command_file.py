"""The operator's list of commands: what it may say, and what becomes of the values that a task gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runwire.domain.errors import SetupError
from runwire.domain.task import LogLevel
from runwire.worker.actions import output
from runwire.worker.actions.commands_file import Parameter, Program, Unfit, read_commands
from runwire.worker.actions.output import Output


def program(*argv: str, **parameters: dict[str, Any]) -> Program:
    return Program.model_validate({"argv": ["/bin/echo", *argv], "parameters": parameters})


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "commands.toml"
    path.write_text(text)
    return path


def complaint(tmp_path: Path, text: str) -> str:
    with pytest.raises(SetupError) as caught:
        read_commands(written(tmp_path, text))
    line = str(caught.value)
    assert line.startswith(f"RUNWIRE_COMMANDS: {tmp_path}/commands.toml: ")
    assert "\n" not in line
    return line.removeprefix(f"RUNWIRE_COMMANDS: {tmp_path}/commands.toml: ")


def test_a_value_fills_an_element_or_a_part_of_one() -> None:
    told = program("--month={month}", "--", "{customer}", month={}, customer={})
    argv = told.filled_in({"month": "2026-05", "customer": "Ada & Söhne; rm -rf /"})
    assert argv == ["/bin/echo", "--month=2026-05", "--", "Ada & Söhne; rm -rf /"]


def test_a_value_is_not_looked_at_for_placeholders() -> None:
    assert program("{a}", "{b}", a={}, b={}).filled_in({"a": "{b}", "b": r"\1"})[1:] == ["{b}", r"\1"]


def test_other_braces_stand_for_themselves() -> None:
    assert program("{print $1}", '{"a": {}}').filled_in({})[1:] == ["{print $1}", '{"a": {}}']


def test_an_element_whose_value_is_not_given_is_left_out() -> None:
    told = program("--month={month}", "{verbose}", month={"required": False}, verbose={"default": "quiet"})
    assert told.filled_in({})[1:] == ["quiet"]


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("string", "", ""),
        ("integer", 5, "5"),
        ("integer", 5.0, "5"),
        ("number", 0.25, "0.25"),
        ("number", 3, "3"),
        ("boolean", True, "true"),
        ("boolean", False, "false"),
    ],
)
def test_values_as_text(kind: Any, value: Any, text: str) -> None:
    assert Parameter(type=kind).text(value) == text


@pytest.mark.parametrize(
    ("parameter", "value", "says"),
    [
        ({}, 5, "must be a string"),
        ({}, ["a", "b"], "must be a string"),
        ({}, {"a": 1}, "must be a string"),
        ({"type": "integer"}, "5", "must be an integer"),
        ({"type": "integer"}, True, "must be an integer"),
        ({"type": "integer"}, 5.5, "must be an integer"),
        ({"type": "number"}, False, "must be a number"),
        ({"type": "boolean"}, 1, "must be a boolean"),
        ({"type": "integer", "minimum": 1}, 0, "must be at least 1"),
        ({"type": "number", "maximum": 0.5}, 0.6, "must be at most 0.5"),
        ({"enum": ["csv", "json"]}, "xml", "must be one of 'csv', 'json'"),
        ({"max_length": 3}, "four", "must have at most 3 characters"),
        ({}, "x" * 1001, "must have at most 1000 characters"),
        ({"pattern": "[0-9]{4}"}, "2026-05", "must match [0-9]{4}"),
        ({"pattern": "[0-9]{4}"}, "2026\n", "must match [0-9]{4}"),
        ({}, "a\0b", "must be text without NUL and without lone surrogates"),
        ({}, "\ud800", "must be text without NUL and without lone surrogates"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(parameter: dict[str, Any], value: Any, says: str) -> None:
    with pytest.raises(Unfit) as caught:
        program("{it}", it=parameter).filled_in({"it": value})
    assert str(caught.value) == f"/target/arguments/it: {says}"


def test_every_mistake_in_the_arguments_is_told() -> None:
    with pytest.raises(Unfit) as caught:
        program("{a}", "{b}", "{c}", a={}, b={}, c={"required": False}).filled_in({"b": 1, "c": None, "d": 1})
    assert str(caught.value).split("; ") == [
        "/target/arguments/d: there is no such parameter",
        "/target/arguments/a: is required",
        "/target/arguments/b: must be a string",
        "/target/arguments/c: must not be null",
    ]


@pytest.mark.parametrize(
    ("template", "values"),
    [("{a}", {"a": "--output=/x"}), ("{a}{b}", {"a": "", "b": "-x"}), ("{a}.txt", {"a": "-x"}), ("{n}", {"n": -5})],
)
def test_a_value_cannot_make_an_option_of_an_argument(template: str, values: dict[str, Any]) -> None:
    kinds = {name: {"type": "integer"} if name == "n" else {} for name in values}
    with pytest.raises(Unfit, match="must not make the argument begin with a dash"):
        program(template, **kinds).filled_in(values)
    allowed = {name: {**kind, "dashes": True} for name, kind in kinds.items()}
    assert program(template, **allowed).filled_in(values)[1].startswith("-")


def test_a_dash_is_fine_where_the_list_has_one_or_further_on() -> None:
    told = program("-n{n}", "--file={file}", "{name}", n={"type": "integer"}, file={}, name={})
    assert told.filled_in({"n": -5, "file": "-", "name": "a-b"})[1:] == ["-n-5", "--file=-", "a-b"]


def test_a_command_is_open_to_the_chains_of_its_list() -> None:
    limited = Program.model_validate({"argv": ["/bin/echo"], "chains": [1, 2]})
    assert [limited.is_open_to(chain) for chain in (1, 2, 3)] == [True, True, False]
    assert program().is_open_to(3)


def test_a_whole_file(tmp_path: Path) -> None:
    commands = read_commands(
        written(
            tmp_path,
            """
            [report]
            argv = ["/bin/echo", "--month={month}", "{top}"]
            chains = [1764]
            env = { REPORT_HOME = "/srv/report" }
            cwd = "/"
            limits = { memory = 512, cpu = 60, open_files = 64, file_size = 100, processes = 200 }
            success = [0, 1]
            retry = [75]
            result = "json"
            grace = 1.5

            [report.parameters]
            month = { pattern = "[0-9]{4}-[0-9]{2}" }
            top = { type = "integer", minimum = 1, maximum = 100, default = 10 }

            [backup]
            argv = ["/bin/true"]
            """,
        )
    )
    assert sorted(commands) == ["backup", "report"]
    assert commands["report"].filled_in({"month": "2026-05"}) == ["/bin/echo", "--month=2026-05", "10"]
    assert (commands["report"].limits.memory, commands["report"].grace) == (512, 1.5)


ECHO = '[x]\nargv = ["/bin/echo", "{a}"]\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[x]\n", "x.argv: Field required"),
        ("[x]\nargv = []\n", "x.argv: must begin with the absolute path of a program"),
        ('[x]\nargv = ["echo"]\n', "x.argv: must begin with the absolute path of a program"),
        ('[x]\nargv = ["/bin/{a}"]\n', "x.argv: must begin with the absolute path of a program"),
        ('[x]\nargv = ["/nowhere/echo"]\n', "x.argv: /nowhere/echo is no program that can be run here"),
        ('[x]\nargv = ["/etc/passwd"]\n', "x.argv: /etc/passwd is no program that can be run here"),
        ('[x]\nargv = "/bin/echo hello"\n', "x.argv: Input should be a valid list"),
        ('[x]\nargv = ["/bin/echo", "a\\u0000b"]\n', "x.argv.1: String should match pattern '^[^\\x00]*\\z'"),
        ('["x y"]\nargv = ["/bin/echo"]\n', "x y: String should match pattern '^[A-Za-z0-9_.-]{1,64}\\z'"),
        (ECHO, "x: argv: {a} is none of the parameters"),
        ('[x]\nargv = ["/bin/echo"]\nparameters.a = {}\n', "x: parameters.a: has no place in argv"),
        ('[x]\nargv = ["/bin/echo"]\nshell = true\n', "x.shell: Extra inputs are not permitted"),
        ('[x]\nargv = ["/bin/echo"]\ncwd = "tmp"\n', "x.cwd: must be the absolute path of a directory"),
        ('[x]\nargv = ["/bin/echo"]\nenv.RUNWIRE_TASK = "1"\n', "x.env: RUNWIRE_TASK is set by the worker"),
        ('[x]\nargv = ["/bin/echo"]\nretry = [0]\n', "x: retry: 0 is a success"),
        ('[x]\nargv = ["/bin/echo"]\nretry = [256]\n', "x.retry.0: Input should be less than or equal to 255"),
        ('[x]\nargv = ["/bin/echo"]\nlimits.memory = "1G"\n', "x.limits.memory: Input should be a valid integer"),
        ('[x]\nargv = ["/bin/echo"]\nlimits.ram = 1\n', "x.limits.ram: Extra inputs are not permitted"),
        (f'{ECHO}parameters.a.pattern = "("\n', "x.parameters.a: pattern: is no regular expression: missing ), "),
        (f"{ECHO}parameters.a.default = 5\n", "x.parameters.a: must be a string"),
        (f'{ECHO}parameters.a = {{type = "integer", enum = ["5"]}}\n', "x.parameters.a: must be an integer"),
        (f"{ECHO}parameters.a.minimum = 5\n", "x.parameters.a: minimum, maximum: not for the type string"),
        (
            f'{ECHO}parameters.a = {{type = "integer", pattern = "5"}}\n',
            "x.parameters.a: pattern: not for the type integer",
        ),
        (f'{ECHO}parameters.a = {{default = "", required = true}}\n', "x.parameters.a: default: of no use when"),
        ("x\n", "Expected '=' after a key in a key/value pair (at line 1, column 2)"),
        ("argv = []\n", "argv: Input should be a valid dictionary or instance of Program"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_with_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    assert complaint(tmp_path, text).startswith(says)


def test_all_mistakes_come_together(tmp_path: Path) -> None:
    assert complaint(tmp_path, "[x]\n[y]\n") == "x.argv: Field required; y.argv: Field required"


def test_a_file_that_cannot_be_read_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"RUNWIRE_COMMANDS: .*/commands.toml: No such file or directory"):
        read_commands(tmp_path / "commands.toml")
    (tmp_path / "commands.toml").write_bytes(b"\xff")
    with pytest.raises(SetupError, match="can't decode byte 0xff"):
        read_commands(tmp_path / "commands.toml")


def test_a_file_that_everybody_may_write_is_a_mistake(tmp_path: Path) -> None:
    written(tmp_path, "").chmod(0o666)
    with pytest.raises(SetupError, match="everybody may write it"):
        read_commands(tmp_path / "commands.toml")


class Lines:
    """What an output logs, of stdout unless said otherwise."""

    def __init__(self) -> None:
        self.lines: list[tuple[LogLevel, str]] = []
        self.output = Output(lambda line, level: self.lines.append((level, line)))

    def of(self, *chunks: bytes) -> list[str]:
        for chunk in chunks:
            self.output.stdout.feed(chunk)
        self.output.close()
        return [line for _, line in self.lines]


def test_lines_are_logged_however_they_come_in() -> None:
    assert Lines().of(b"on", b"e\r\ntw", b"o\n\nthr", b"ee") == ["one", "two", "", "three"]


def test_a_line_that_is_not_utf_8_is_logged_all_the_same() -> None:
    assert Lines().of(b"caf\xe9 \xc3\xa9\n") == ["caf\ufffd é"]


def test_a_long_line_is_cut_in_whatever_pieces_it_comes() -> None:
    line, _ = b"x" * 10_000, None
    (logged,) = Lines().of(line[:3000], line[3000:9000], line[9000:] + b"\n")
    assert logged == "x" * output.LONGEST_LINE + "... (6,000 bytes cut off)"


def test_beyond_the_first_lines_only_the_last_are_logged() -> None:
    logged = Lines().of(*(f"{number}\n".encode() for number in range(10_000)))
    assert logged[: output.FIRST_LINES] == [str(number) for number in range(output.FIRST_LINES)]
    left_out, *last = logged[output.FIRST_LINES :]
    assert last == [str(number) for number in range(10_000 - output.LAST_LINES, 10_000)]
    assert left_out == f"{10_000 - output.FIRST_LINES - output.LAST_LINES:,} lines of stdout are left out"


@pytest.mark.parametrize("surplus", [1, 2, output.LAST_LINES])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_no_line_is_logged_twice_or_lost_at_the_limit(surplus: int, end: bytes) -> None:
    numbers = [str(number) for number in range(output.FIRST_LINES + surplus)]
    for size in (1, 7, 100_000):
        text = "\n".join(numbers).encode() + end
        assert Lines().of(*(text[at : at + size] for at in range(0, len(text), size))) == numbers


def test_the_streams_share_the_room_for_the_first_lines() -> None:
    lines = Lines()
    lines.output.stderr.feed(b"warning\n" * output.FIRST_LINES)
    assert lines.of(b"1\n2\n") == ["warning"] * output.FIRST_LINES + ["1", "2"]
    assert lines.lines[0][0] is LogLevel.WARNING
    assert lines.lines[-1][0] is LogLevel.INFO


def test_few_long_lines_fill_the_room_as_well() -> None:
    logged = Lines().of(*((b"x" * 3999 + b"\n") for _ in range(900)))
    assert sum(map(len, logged)) < output.FIRST_BYTES + 2 * output.KEPT + 8000
    assert any("are left out" in line for line in logged)


def test_the_last_line_is_the_last_that_is_not_blank() -> None:
    lines = Lines()
    lines.of(b"one\ntwo\n  \n\n")
    assert lines.output.stdout.last_line == b"two"
    assert lines.output.stderr.last_line == b""


def test_the_list_of_the_documentation_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "actions.md").read_text()
    example = text.partition("```toml\n")[2].partition("```")[0]
    here = example.replace("/usr/local/bin/report", "/bin/echo").replace("/usr/bin/find", "/bin/echo")
    commands = read_commands(written(tmp_path, here))
    assert commands["report"].filled_in({"month": "2026-05", "customer": "Ada & Co."}) == [
        "/bin/echo", "--month=2026-05", "--top=10", "--", "Ada & Co.",
    ]  # fmt: skip
    assert commands["cleanup"].filled_in({})[-1] == "-delete"
