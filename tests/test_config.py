"""From TOML or the environment to checked tables: every mistake is named, no secret is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Optional

import pytest
from attrs import Attribute, field, frozen
from hypothesis import given
from hypothesis import strategies as st

from kms_core import ConfigError, Duration, Kms, Secret, config
from kms_core.config import Raw, structure

CANARY = "hunter2-canary"


def raw_in(folder: Path, **environ: str) -> Raw:
    """Where relative paths and variables of a table come from."""
    return Raw({}, "kms.toml", folder, environ)


def _even(_: object, attribute: Attribute[Any], value: int) -> None:
    if value % 2:
        raise ValueError(f"{attribute.name} must be even")


@frozen
class Everything:
    """A field of every type that a provider's settings may have."""

    key: str
    number: int = field(default=2, validator=_even)
    switch: bool = False
    ratio: float = 0.5
    path: Path = Path()
    wait: Duration = field(default=Duration(1.0))
    pin: Secret | None = None
    names: tuple[str, ...] = ()
    level: Literal["low", "high"] = "low"
    text_or_not: str | None = None
    number_or_not: int | None = None
    path_or_not: Path | None = None
    names_or_not: tuple[str, ...] | None = None


def build(values: Mapping[str, Any], folder: Path = Path("/base"), **environ: str) -> Everything:
    """``Everything`` from a table."""
    return structure(
        Everything, {"key": "k", **values}, "kms.toml: [instances.a]", raw_in(folder, **environ)
    )


# --- types ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "written", "read"),
    [
        ("number", 4, 4),
        ("switch", True, True),
        ("ratio", 0.25, 0.25),
        ("ratio", 1, 1),
        ("path", "keys/a", Path("/base/keys/a")),
        ("path", "/abs", Path("/abs")),
        ("path", Path("keys"), Path("/base/keys")),
        ("wait", 3, 3.0),
        ("wait", 0.5, 0.5),
        ("names", ["x", "y"], ("x", "y")),
        ("names", [], ()),
        ("level", "high", "high"),
        ("text_or_not", "text", "text"),
        ("text_or_not", None, None),
        ("number_or_not", 2, 2),
        ("path_or_not", "x", Path("/base/x")),
        ("names_or_not", ["x"], ("x",)),
        ("pin", None, None),
    ],
)
def test_a_value_of_the_right_type_is_taken(name: str, written: object, read: object) -> None:
    """Paths are relative to the file, lists become tuples."""
    found = getattr(build({name: written}), name)
    assert found == read
    assert type(found) is type(read)


@pytest.mark.parametrize(
    ("name", "written", "complaint"),
    [
        ("key", 7, "key: must be a string, not a number"),
        ("key", ["k"], "key: must be a string, not a list"),
        ("number", "4", "number: must be a number, not a string"),
        ("number", True, "number: must be a number, not true or false"),
        pytest.param(
            "number",
            4.0,
            "number: must be a whole number",
        ),
        ("number", 3, "number must be even"),
        ("switch", 1, "switch: must be true or false, not a number"),
        ("switch", "true", "switch: must be true or false, not a string"),
        ("ratio", False, "ratio: must be a number, not true or false"),
        ("path", 3, "path: must be a Path, not a number"),
        ("wait", "soon", "wait: must be seconds or a duration such as"),
        ("wait", True, "wait: must be seconds or a duration"),
        ("wait", ["3s"], "wait: must be seconds or a duration"),
        ("names", "x", "names: must be a list of strings"),
        ("names", ["x", 1], "names: must be a list of strings"),
        ("level", "medium", "level: must be one of 'low', 'high'"),
        ("text_or_not", {}, "text_or_not: must be a string, not a table"),
        ("number_or_not", "2", "number_or_not: must be a number, not a string"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(name: str, written: object, complaint: str) -> None:
    """File, table and key stand in front of what is wrong."""
    with pytest.raises(ConfigError) as caught:
        build({name: written})
    assert str(caught.value).startswith(f"kms.toml: [instances.a]: {complaint}")


@frozen
class OldSpelling:
    """Optional fields as ``typing`` spells them, and types that cannot be spelt otherwise."""

    key: str
    text: Optional[str] = None  # noqa: UP045
    path: Optional[Path] = None  # noqa: UP045
    wait: Duration | None = None
    level: Literal["low", "high"] | None = None
    pin: Optional[Secret] = None  # noqa: UP045


@pytest.mark.parametrize(
    ("name", "written", "read"),
    [
        ("text", "text", "text"),
        ("text", None, None),
        pytest.param("path", "x", Path("/base/x")),
        pytest.param("wait", "3s", 3.0),
        pytest.param("wait", None, None),
        pytest.param("level", "high", "high"),
    ],
)
def test_optional_may_be_spelt_either_way(name: str, written: object, read: object) -> None:
    """``Duration | None`` and ``Literal[...] | None`` are what ``typing`` makes of them."""
    made = structure(OldSpelling, {"key": "k", name: written}, "here", raw_in(Path("/base")))
    assert getattr(made, name) == read


def test_an_unknown_key_is_named_with_the_nearest() -> None:
    """The list of all is shown only where nothing is near."""
    with pytest.raises(ConfigError, match=r"\[instances\.a\]: unknown key 'pathh'.*'path'"):
        build({"pathh": "x"})
    with pytest.raises(ConfigError, match=r"unknown key 'zzz'; known are key, number, switch"):
        build({"zzz": "x"})


def test_a_missing_key_is_named() -> None:
    """Every key that has no default is asked for."""
    with pytest.raises(ConfigError, match=r"^kms\.toml: \[instances\.a\]: key is missing$"):
        structure(Everything, {}, "kms.toml: [instances.a]", raw_in(Path()))


def test_a_home_that_cannot_be_found_is_a_configuration_error() -> None:
    """A path of somebody who is not known on this machine."""
    with pytest.raises(ConfigError, match="path"):
        build({"path": "~nobody-of-that-name/keys"})


@frozen
class Picky:
    """Settings that check themselves as a whole."""

    key: str

    def __attrs_post_init__(self) -> None:
        raise TypeError("key and\n  region exclude each other")


def test_what_settings_complain_about_gets_its_place_in_one_line() -> None:
    """The provider knows the field, the core adds file and table."""
    with pytest.raises(ConfigError, match=r"^here: key and region exclude each other$"):
        structure(Picky, {"key": "k"}, "here", raw_in(Path()))


# --- durations -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("3s", 3.0),
        ("1.5s", 1.5),
        ("5m", 300.0),
        ("2 h", 7200.0),
        ("1d", 86400.0),
        (" 3s ", 3.0),
        ("0s", 0.0),
    ],
)
def test_durations_may_be_written_with_a_unit(text: str, seconds: float) -> None:
    """Milliseconds to days."""
    assert build({"wait": text}).wait == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "s",
        "-3s",
        "3 sec",
        "1h30m",
        "1e3s",
        "3S",
        ".5s",
        pytest.param("٣s"),
    ],
)
def test_durations_that_could_be_misread_are_refused(text: str) -> None:
    """A number as text has no unit; a unit nobody defined has no meaning."""
    with pytest.raises(ConfigError, match="wait: must be seconds"):
        build({"wait": text})


@given(st.text())
def test_any_text_is_a_duration_or_a_configuration_error(text: str) -> None:
    """Nothing else happens."""
    try:
        seconds = build({"wait": text}).wait
    except ConfigError:
        return
    assert seconds >= 0


# --- secrets -------------------------------------------------------------------------------------


def test_a_secret_comes_from_a_variable_or_a_file(tmp_path: Path) -> None:
    """A file's final newline is the editor's, not the secret's."""
    (tmp_path / "pin").write_text(f" {CANARY}\n")
    from_variable = build({"pin": {"env": "HSM_PIN"}}, HSM_PIN=CANARY).pin
    from_file = build({"pin": {"file": "pin"}}, folder=tmp_path).pin
    given_directly = build({"pin": Secret(CANARY)}).pin
    assert from_variable is not None
    assert from_file is not None
    assert given_directly is not None
    assert from_variable.reveal() == CANARY
    assert from_file.reveal() == f" {CANARY}"
    assert given_directly.reveal() == CANARY


@pytest.mark.parametrize(
    "written",
    [
        CANARY,
        [CANARY],
        {"value": CANARY},
        {"env": "HSM_PIN", "default": CANARY},
        {"env": "HSM_PIN", "file": CANARY},
        {},
        1234,
    ],
    ids=repr,
)
def test_a_secret_that_is_written_down_is_refused_and_not_repeated(written: object) -> None:
    """The message says how to write it instead."""
    with pytest.raises(
        ConfigError, match=r'pin: a secret is never written down.*env = "NAME"'
    ) as c:
        build({"pin": written}, HSM_PIN="x")
    assert CANARY not in str(c.value)
    assert "1234" not in str(c.value)


def test_a_secret_that_cannot_be_found_is_an_error_that_says_where(tmp_path: Path) -> None:
    """Unset, empty, absent or unreadable."""
    (tmp_path / "odd").write_bytes(b"\xff\xfe" + CANARY.encode())
    for written, complaint in (
        ({"env": "HSM_PIN"}, "environment variable HSM_PIN is not set"),
        ({"env": "EMPTY"}, "environment variable EMPTY is not set"),
        ({"file": "absent"}, f"cannot read the secret in {tmp_path / 'absent'}"),
        ({"file": "."}, "cannot read the secret in"),
        ({"file": "odd"}, "cannot read the secret in"),
    ):
        with pytest.raises(ConfigError) as caught:
            build({"pin": written}, folder=tmp_path, EMPTY="")
        assert f"[instances.a]: pin: {complaint}" in str(caught.value)
        assert caught.value.__cause__ is None
        assert CANARY not in str(caught.value)


def test_the_representation_of_tables_shows_neither_secrets_nor_the_environment() -> None:
    """Objects end up in logs."""
    made = build({"pin": {"env": "HSM_PIN"}}, HSM_PIN=CANARY)
    assert "Secret(…)" in repr(made)
    assert CANARY not in repr(made)
    assert CANARY not in repr(raw_in(Path(), HSM_PIN=CANARY))


# --- files ---------------------------------------------------------------------------------------


def write(folder: Path, text: str) -> Path:
    """A configuration file."""
    path = folder / "kms.toml"
    path.write_text(text)
    return path


def test_a_file_is_read_with_its_name_and_folder(tmp_path: Path) -> None:
    """For messages, and for the paths in it."""
    path = write(tmp_path, '[instances.a]\nprovider = "local"\n')
    raw = config.load(path, {"A": "b"})
    assert raw.tables == {"instances": {"a": {"provider": "local"}}}
    assert (raw.source, raw.base, raw.environ) == (str(path), tmp_path, {"A": "b"})


def test_a_relative_file_has_an_absolute_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later change of directory must not change where keys are looked for."""
    write(tmp_path, "")
    monkeypatch.chdir(tmp_path)
    assert config.load("kms.toml").base == tmp_path


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a = ", "is not valid TOML"),
        (b"[envelope]\n[envelope]\n", "is not valid TOML"),
        (b"a = '\xff'", "is not valid TOML"),
        (b"[envelop]\n", "unknown key 'envelop'; did you mean 'envelope'?"),
        (b"[[[", "is not valid TOML"),
        (b"#" * (1 << 20) + b"\n", "is larger than 1048576 bytes"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(
    content: bytes, complaint: str, tmp_path: Path
) -> None:
    """In one line that begins with its name."""
    path = tmp_path / "kms.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert complaint in message
    assert "\n" not in message


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    """So does one that is a folder."""
    with pytest.raises(
        ConfigError, match=r"cannot read configuration .*absent\.toml: No such file"
    ):
        config.load(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match=r"cannot read configuration .*: Is a directory"):
        config.load(tmp_path)


def test_what_should_be_a_table_is_named() -> None:
    """An array or a number in its place is a frequent slip."""
    with pytest.raises(ConfigError, match=r"^here: must be a table, not a list$"):
        config.table([1], "here")
    with pytest.raises(ConfigError, match=r"^here: must be a table, not a number$"):
        config.table(1, "here")


# --- where a configuration is found --------------------------------------------------------------


def test_the_variable_comes_before_the_users_folder_and_that_before_the_services(
    tmp_path: Path,
) -> None:
    """The most explicit wins."""
    named = write(tmp_path, "")
    folder = tmp_path / "config"
    own = folder / "kms" / "kms.toml"
    environ = {"KMS_CONFIG": str(named), "XDG_CONFIG_HOME": str(folder), "KMS_AWS_KEY": "k"}
    assert config.find(environ).source == str(named)
    del environ["KMS_CONFIG"]
    assert config.find(environ).source == "the environment"
    own.parent.mkdir(parents=True)
    own.write_text("")
    assert config.find(environ).source == str(own)


def test_a_named_file_that_is_missing_is_not_replaced_by_another(tmp_path: Path) -> None:
    """Whoever set ``KMS_CONFIG`` meant that file."""
    environ = {"KMS_CONFIG": str(tmp_path / "absent"), "KMS_AWS_KEY": "k"}
    with pytest.raises(ConfigError, match="absent"):
        config.find(environ)


def test_the_working_directory_is_not_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file dropped where an application happens to run must not redirect its keys."""
    write(tmp_path, '[instances.evil]\nprovider = "local"\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"no configuration: write kms\.toml"):
        config.find({"XDG_CONFIG_HOME": str(tmp_path / "none")})


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"XDG_CONFIG_HOME": "/x", "APPDATA": "/y"}, Path("/x")),
        ({"APPDATA": "/y"}, Path("/y")),
        ({}, Path.home() / ".config"),
    ],
    ids=["XDG", "Windows", "neither"],
)
def test_the_users_folder_is_the_systems(environ: dict[str, str], folder: Path) -> None:
    """As other programs find theirs."""
    expected = (Path.home() / ".config" if not environ else folder) / "kms" / "kms.toml"
    assert config.user_file(environ) == expected


def test_the_services_own_variables_are_enough() -> None:
    """One instance per service that is described."""
    raw = config.from_environment(
        {
            "KMS_AWS_KEY": "alias/app",
            "AWS_REGION": "eu-west-1",
            "KMS_AZURE_KEY": "app",
            "AZURE_KEY_VAULT_URL": "https://v.vault.azure.net",
            "KMS_GCP_KEY": "app",
            "GCP_PROJECT_ID": "p",
        }
    )
    assert raw.tables == {
        "instances": {
            "aws": {"provider": "aws-kms", "key": "alias/app", "region": "eu-west-1"},
            "azure": {
                "provider": "azure-keyvault",
                "key": "app",
                "vault_url": "https://v.vault.azure.net",
            },
            "gcp": {"provider": "gcp-kms", "key": "app", "project": "p"},
        }
    }


def test_an_arn_needs_no_region() -> None:
    """It names its own; endpoint variables of the SDKs are ignored."""
    environ = {"KMS_AWS_KEY": "arn:aws:kms:…", "AWS_ENDPOINT_URL": "http://evil"}
    tables = config.from_environment(environ).tables
    assert tables == {"instances": {"aws": {"provider": "aws-kms", "key": "arn:aws:kms:…"}}}


@pytest.mark.parametrize(
    ("environ", "complaint"),
    [
        ({"KMS_AZURE_KEY": "k"}, "KMS_AZURE_KEY is set and AZURE_KEY_VAULT_URL is not"),
        ({"KMS_GCP_KEY": "k"}, "KMS_GCP_KEY is set and GCP_PROJECT_ID is not"),
        ({"KMS_GCP_KEY": "k", "GCP_PROJECT_ID": ""}, "KMS_GCP_KEY is set and GCP_PROJECT_ID"),
        ({}, "no configuration: write kms.toml"),
        ({"AWS_REGION": "eu-west-1"}, "set AWS_REGION and KMS_AWS_KEY"),
    ],
)
def test_half_a_description_is_an_error(environ: dict[str, str], complaint: str) -> None:
    """Both variables of a service, or neither."""
    with pytest.raises(ConfigError, match=complaint):
        config.from_environment(environ)


def test_a_client_reads_the_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which here describes a service whose plugin cannot be found."""
    monkeypatch.setenv("KMS_AZURE_KEY", "app")
    monkeypatch.setenv("AZURE_KEY_VAULT_URL", "https://v.vault.azure.net")
    for connect in (Kms.from_env, Kms.from_config):
        with pytest.raises(
            ConfigError, match=r"^the environment: \[instances\.azure\] needs .*pip install kms-az"
        ):
            connect(plugins=[])
