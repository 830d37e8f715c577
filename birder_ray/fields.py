"""Nested fields as users write them: in a pipeline file, and as `dotted.key=value`. What they mean is `config.py`'s."""

from typing import Any

import yaml

from birder_ray.errors import ConfigError
from birder_ray.storage import open_binary, redact


class Texts(yaml.SafeLoader):
    """Every value as it is written: NO is Norway and no `false`, and 0123 has its 0."""


Texts.yaml_implicit_resolvers = {
    first: [each for each in found if each[0] == "tag:yaml.org,2002:null"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_mapping(path: str, what: str, keys: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> dict[str, Any]:
    """The mapping in a YAML (or JSON) file.

    Args:
        what: what the file is called, and `keys`: what it has to give, where an error is told. loader: of PyYAML.

    Raises:
        ConfigError: no such file, not to be read, no YAML, or no mapping.
    """
    shown = redact(path)
    try:
        with open_binary(path) as file:
            fields = yaml.load(file, loader)
    except FileNotFoundError:
        raise ConfigError(f"{shown}: no such {what}") from None
    except ConfigError:
        raise
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{shown}: not a YAML file: {error}") from None
    except Exception as error:  # every filesystem has exceptions of its own
        raise ConfigError(f"{shown}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{shown}: a {what} is a mapping with {keys}")
    return {str(key): value for key, value in fields.items()}


def read_fields(path: str, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """The mapping in a pipeline file, with `overrides` in their places.

    Raises:
        ConfigError: as `RunConfig.from_yaml` does.
    """
    fields = read_mapping(path, "pipeline file", "source, model and destination")
    for text in overrides:
        override(fields, text)
    return fields


def override(fields: dict[str, Any], text: str, flag: str = "--set") -> None:
    """Set a nested field as `dotted.key=value` says, the value in YAML.

    Raises:
        ConfigError: `text` is not of that form; `flag` is the option it came with.
    """
    dotted, equals, value = text.partition("=")
    if not equals or not all(dotted.split(".")):
        raise ConfigError(f"{flag} {dotted}: write it as KEY=VALUE, e.g. --set model.size=384")
    try:
        put(fields, dotted, yaml.safe_load(value))
    except yaml.YAMLError:
        raise ConfigError(f"{flag} {dotted}=...: the part after = is no YAML value") from None


def put(fields: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a nested field; what stands in the way of the nesting gives way, but for the short forms of a block."""
    *parents, last = dotted.split(".")
    for key in parents:
        if isinstance(fields.get(key), str | list):  # the short form: source: a/path
            fields[key] = {{"source": "uri", "model": "name"}.get(key, key): fields[key]}
        if not isinstance(fields.get(key), dict):
            fields[key] = {}
        fields = fields[key]
    fields[last] = value
