"""The command ``kms`` itself: help, lookup of commands, plugins' commands, and errors."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
import pytest

from kms_core.cli import main
from kms_core.cli.exits import MEANINGS, ExitCode
from kms_core.cli.group import BUILTINS
from kms_core.cli.group import kms as root
from kms_core.plugins import KNOWN_DISTRIBUTIONS

if TYPE_CHECKING:
    from tests.cli.conftest import Install, Run

#: What scripts may rely on: removing or renaming one of these is a breaking change.
OPTIONS = {
    "": {"--config", "--verbose", "--version", "--help"},
    "init": {"--path", "--passphrase-env"},
    "seal": {"FILE", "--output", "--context", "--stored-context", "--armor", "--compact"},
    "open": {"FILE", "--output", "--context", "--identity", "--passphrase-env"},
    "inspect": {"FILE", "--json"},
    "rewrap": {"FILE", "--output", "--repair", "--no-repair", "--add", "--remove"},
    "encrypt": {"FILE", "--output", "--context", "--via"},
    "decrypt": {"FILE", "--output", "--context"},
    "sign": {"FILE", "--output", "--algorithm", "--via"},
    "verify": {"FILE", "--signature", "--via"},
    "public-key": {"--output", "--via"},
    "health": {"--json", "--deep", "--watch", "--interval"},
    "plugins": {"--json", "--check", "--no-check"},
    "conformance": {"INSTANCE", "--rotate", "--json"},
    "new-plugin": {"NAME", "--directory"},
}


def _command(name: str) -> click.Command:
    command = root.get_command(click.Context(root), name) if name else root
    assert command is not None
    return command


def _spellings(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            yield (parameter.name or "").upper()
        else:
            names = (*parameter.opts, *parameter.secondary_opts)
            yield from (name for name in names if name.startswith("--"))


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_what_scripts_rely_on(name: str) -> None:
    """Every option of every command, by name."""
    assert set(_spellings(_command(name))) == OPTIONS[name] - {"--help"}


@pytest.mark.parametrize("name", ["", *BUILTINS])
def test_help_describes_the_command_and_every_option(kms: Run, name: str) -> None:
    """``--help`` renders, and no option goes unexplained."""
    helped = kms(*filter(None, [name]), "--help")
    command = _command(name)
    assert (helped.code, helped.err) == (0, "")
    assert (command.help or "").split("\n")[0].split(".")[0] in " ".join(helped.text.split())
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert parameter.opts[-1] in helped.text


def test_help_lists_commands_plugins_and_exit_codes(kms: Run, install: Install) -> None:
    """One page tells what there is, and imports none of the plugins to do so."""
    install("broken", "broken_plugin")
    helped = kms("--help").text
    for text in ("seal", "broken-plugin 1.0", *(str(int(code)) for code in ExitCode)):
        assert text in helped
    assert all(meaning in helped for meaning in MEANINGS.values())
    assert "broken_plugin" not in sys.modules


def test_help_without_any_plugin_has_no_list_of_plugins(
    kms: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty heading would only confuse."""
    monkeypatch.setattr("kms_core.cli.extensions.discover", lambda: iter(()))
    assert "Plugins" not in kms("--help").text


def test_no_command_is_a_usage_error_that_shows_the_help(kms: Run) -> None:
    """A script that calls ``kms $UNSET`` must not succeed, and a person wants to read on."""
    done = kms()
    assert (done.code, done.out) == (ExitCode.USAGE, b"")
    assert "Commands:" in done.err


def test_version_is_that_of_the_distribution(kms: Run) -> None:
    """``kms --version`` is one line."""
    from importlib.metadata import version

    assert kms("--version").text == f"kms {version('kms-core')}\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["sael"], "no command 'sael'; did you mean 'seal'? (see `kms --help`)"),
        (["zzzzz"], "no command 'zzzzz' (see `kms --help`)"),
        (["seal", "--nonsense"], "(see `kms seal --help`)"),
        (["--nonsense"], "(see `kms --help`)"),
        (["open", "a", "b"], "(see `kms open --help`)"),
        (["seal", "-c", "tenant"], "number 1 has no '='"),
        (["open", "-c", "a=b", "-c", "a=c"], "'a' is given twice"),
        (["unheard-of"], "missing: pip install kms-unheard-of"),
    ],
    ids=" ".join,
)
def test_usage_errors_are_one_line(
    kms: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    """Exit code 2, what is wrong, and where to read on."""
    monkeypatch.setitem(KNOWN_DISTRIBUTIONS, "unheard-of", "kms-unheard-of")
    done = kms(*arguments)
    assert (done.code, done.out) == (ExitCode.USAGE, b"")
    assert expected in done.complaint


def test_context_values_are_not_repeated_in_errors(kms: Run) -> None:
    """They may be personal data, also where the option was not understood."""
    assert "Erika" not in kms("seal", "-c", "Erika").complaint
    assert "Erika" not in kms("seal", "-c", "name=x", "-c", "name=Erika").complaint


# --- plugins' commands ---------------------------------------------------------------------------


def test_plugin_brings_commands(kms: Run, install: Install) -> None:
    """``kms PLUGIN COMMAND`` runs what the plugin's hook added; what it returns is no exit code."""
    install("paper", "paper_plugin")
    done = kms("paper", "greet", "you")
    assert (done.code, done.text, done.err) == (0, "hello you\n", "")
    assert "Greet NAME." in kms("paper", "--help").text
    assert "did you mean 'paper'?" in kms("papre").complaint


def test_plugin_without_a_command_shows_its_help(kms: Run, install: Install) -> None:
    """As ``kms`` itself does."""
    install("paper", "paper_plugin")
    done = kms("paper")
    assert (done.code, done.out) == (ExitCode.USAGE, b"")
    assert "greet" in done.err


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("broken", "RuntimeError: out of order"),
        ("clumsy", "LookupError: nothing to add"),
        ("silent", "has no commands"),
    ],
)
def test_plugin_that_cannot_help_says_why(
    kms: Run, install: Install, name: str, reason: str
) -> None:
    """A plugin's fault is one line and harms no other command."""
    install(name, f"{name}_plugin")
    done = kms(name, "anything")
    assert (done.code, done.out) == (ExitCode.USAGE, b"")
    assert reason in done.complaint


def test_plugin_does_not_shadow_a_builtin_command(kms: Run, install: Install) -> None:
    """Whatever is installed, ``kms seal`` is ours."""
    install("seal", "broken_plugin")
    assert "Encrypt FILE" in kms("seal", "--help").text
    assert root.list_commands(click.Context(root)).count("seal") == 1


def test_plugins_errors_are_mapped_like_ours(kms: Run, install: Install) -> None:
    """Commands of plugins raise; the group says it in one line."""
    install("paper", "paper_plugin")
    done = kms("paper", "fail", "Unavailable")
    assert (done.code, done.complaint) == (ExitCode.UNAVAILABLE, "a secret is here")


# --- whatever else can happen --------------------------------------------------------------------


def test_unexpected_error_is_one_line_without_its_message(kms: Run, install: Install) -> None:
    """No traceback, and nothing that the message may quote."""
    install("paper", "paper_plugin")
    done = kms("paper", "fail", "ValueError")
    assert done.code == ExitCode.FAILED
    assert done.complaint.startswith("internal error: ValueError in paper_plugin.py, line ")
    assert "secret" not in done.err


def test_interrupt_is_quiet(kms: Run, install: Install) -> None:
    """Ctrl-C exits with 130, as the shell reports a process that it ended."""
    install("paper", "paper_plugin")
    done = kms("paper", "fail", "KeyboardInterrupt")
    assert (done.code, done.out, done.err) == (ExitCode.INTERRUPTED, b"", "")


def test_abort_of_a_prompt_is_an_interrupt(kms: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt outside a command reaches the group as click's Abort."""

    def abort(*_args: Any) -> None:
        raise click.Abort

    monkeypatch.setattr(type(root), "get_command", abort)
    assert kms("seal").code == ExitCode.INTERRUPTED


def test_error_of_the_system_names_the_file(kms: Run) -> None:
    """Exit code 1, in the words of the system."""
    done = kms("inspect", "absent")
    assert (done.code, done.complaint) == (1, "absent: No such file or directory")


def test_error_of_the_system_without_a_file(kms: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no file is to blame the message stands alone."""

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr("kms_core.cli.files.reading", fail)
    assert kms("inspect").complaint == "the disk is gone"


def test_broken_pipe_is_quiet(monkeypatch: pytest.MonkeyPatch, install: Install) -> None:
    """Output that nobody reads ends the command, and the interpreter has nothing left to say."""
    install("paper", "paper_plugin")
    reading, writing = os.pipe()
    os.close(reading)
    err = io.StringIO()
    with os.fdopen(writing, "w") as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        patch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as exited:
            main(["paper", "greet", "you"])
        stdout.write("more")  # flushed when closed: into nothing
    assert (exited.value.code, err.getvalue()) == (ExitCode.BROKEN_PIPE, "")


@pytest.mark.parametrize("absent", ["click", "rich"])
def test_without_its_extra_the_command_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], absent: str
) -> None:
    """The core alone has no click and no rich."""
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(SystemExit) as exited:
        main(["--help"])
    assert exited.value.code == ExitCode.USAGE
    said = "kms: the command line needs its extra: pip install 'kms-core[cli]'\n"
    assert capsys.readouterr() == ("", said)
