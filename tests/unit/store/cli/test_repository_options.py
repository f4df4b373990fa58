"""Each option of the table is a key of the file, a flag, a mount option and a variable, and means
the same in all four."""

import argparse
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from fsgateway.options import parse_options
from store.backends.s3.config import S3Config
from store.cli.options import HelpFormatter, Parser, add_key_options, add_repository_options, layers
from store.errors import InvalidName
from store.repositories import option_kinds as kinds
from store.repositories.configuration import load_configuration
from store.repositories.options import BY_NAME, OPTIONS, SECRET_FORMS, Option, environment_layer
from store.repositories.settings import RepositorySettings

TEXTS = {
    kinds.BOOLEAN: "true",
    kinds.DIRECTORY: "/fast/a, b",
    kinds.DURATION: "5m",
    kinds.ENDPOINT: "https://s3.example.com:8333",
    kinds.FILE: "/etc/a,b",
    kinds.FINGERPRINT: ":".join(["ab"] * 32),
    kinds.LIST: "one,s3://bucket/two",
    kinds.MEMORY: "1G",
    kinds.NAMESPACE: "prod/web",
    kinds.NUMBER: "7",
    kinds.POSITIVE: "7",
    kinds.SIZE: "64M",
    kinds.TEXT: 'a "b", \\c',
    kinds.COMMAND: "pass show 'a, b'",
    kinds.TIMEOUT: "10s",
}
each = pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)


def parse(*arguments: str) -> argparse.Namespace:
    parser = Parser(formatter_class=HelpFormatter)
    add_repository_options(parser)
    add_key_options(parser)
    return parser.parse_args(arguments)


def of_flags(option: Option, text: str) -> Any:
    value = () if option.kind is kinds.BOOLEAN else (text,)
    return layers(parse(f"--{option.name}", *value))[0][option.name].value


def of_mount(option: Option, text: str) -> Any:
    quoted = text.replace("\\", r"\\").replace('"', r"\"").replace(",", r"\,")
    return parse_options([f"ro,{option.name}={quoted},noatime"]).repository[option.name].value


def of_toml(option: Option, text: str, folder: Path) -> Any:
    value: object = text
    if option.kind is kinds.LIST:
        value = text.split(",")
    elif bool in option.kind.toml_types:
        value = True
    elif str not in option.kind.toml_types:
        value = int(text)
    lines = ["[repository.one]", 'url = "/one"', "[repository.x]", 'url = "s3://bucket/x"']
    if option.name == "access-key":
        lines.append('secret-key = "s"')
    elif option.name in SECRET_FORMS:
        lines.append('access-key = "a"')
    file = folder / "config.toml"
    file.write_text("\n".join((*lines, f"{option.name} = {json.dumps(value)}")))
    file.chmod(0o600)
    return load_configuration(str(file)).choose("x").options[option.name].value


@each
def test_an_option_is_the_same_in_every_place(option: Option, tmp_path: Path) -> None:
    text = TEXTS[option.kind]
    expected = option.kind.read(text)
    assert of_flags(option, text) == expected
    assert of_mount(option, text) == expected
    assert of_toml(option, text, tmp_path) == expected
    assert environment_layer({option.variable: text})[option.name].value == expected


@each
def test_wrong_values_are_refused_with_their_place(
    option: Option, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the same words; a secret is in none of them."""
    wrong = "canary\x01"
    with pytest.raises(InvalidName, match=f"mount option {option.name}") as mounting:
        parse_options([f"{option.name}={wrong}"])
    with pytest.raises(InvalidName, match=rf"\${option.variable}") as environment:
        environment_layer({option.variable: wrong})
    shown = [str(mounting.value), str(environment.value)]
    if option.kind is not kinds.BOOLEAN:
        with pytest.raises((SystemExit, InvalidName)) as parsing:
            layers(parse(f"--{option.name}", wrong))
        shown.append(capsys.readouterr().err + str(parsing.value))
        assert f"--{option.name}" in shown[-1]
    assert all("control characters" in text for text in shown)
    assert not option.is_secret or "canary" not in "".join(shown)


def test_flags_of_yes_and_no() -> None:
    given, *_ = layers(
        parse("--no-conditional-put", "--take-over", "--path-style", "--no-path-style")
    )
    values = {name: given[name].value for name in ("conditional-put", "take-over", "path-style")}
    assert values == {"conditional-put": False, "take-over": True, "path-style": False}
    assert given["conditional-put"].origin == "--no-conditional-put"


def test_every_option_has_its_field_and_its_default() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(RepositorySettings)}
    ours = {option.field for option in OPTIONS}
    assert ours == set(fields) - {"url", "name"}
    defaults = {field.name: field.default for field in dataclasses.fields(S3Config)}
    for option in OPTIONS:
        if option.is_s3 and option.default is not None:
            assert defaults[option.field] == option.default
    assert BY_NAME["memory"].default == fields["memory_bytes"]


def test_every_option_of_s3_reaches_it() -> None:
    values = {
        option.field: option.kind.read(TEXTS[option.kind])
        for option in OPTIONS
        if option.is_s3 and option.field not in {"secret_key_file", "secret_key_cmd"}
    }
    config = RepositorySettings("s3://bucket/store", **values).s3_config()
    given = {field.name: getattr(config, field.name) for field in dataclasses.fields(S3Config)}
    assert given == {"bucket": "bucket", "datastore": "store", **values}


def test_help_lists_them_once_in_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    usage, _, rest = capsys.readouterr().out.partition("\n\n")
    assert "--endpoint" not in usage
    group = rest.partition("repository options")[2]
    for option in OPTIONS:
        if option.name not in {"ns", "keyfile"}:
            assert len(re.findall(rf"^  --{option.name}[ ,]", group, re.MULTILINE)) == 1


def test_a_command_that_is_not_called_does_not_pay() -> None:
    parser = Parser()
    add_repository_options(parser)
    assert not any("--endpoint" in action.option_strings for action in parser._actions)
    parser.parse_args([])
    assert any("--endpoint" in action.option_strings for action in parser._actions)
